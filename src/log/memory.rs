//! A log in memory, bounded by changes and bytes.
