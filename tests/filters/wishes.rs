//! What else a binding may wish.
