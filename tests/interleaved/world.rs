//! A database with a relay, those who watch it, and what is done to it.

mod play;

mod rules;

pub(crate) use play::play;
pub(crate) use rules::Rules;
