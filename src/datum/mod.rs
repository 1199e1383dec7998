//! PostgreSQL values, typed: read from their text output and compared exactly as PostgreSQL's own
//! operators compare them. What is not exact is not here.
