//! The front as its clients see it: real sockets on a port of its own, with the test in the
//! router's place.

mod auth;
mod bounds;
mod channels;
mod frames;
mod shutdown;
mod support;
mod tokens;
mod upgrades;
