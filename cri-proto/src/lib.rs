//! Generated wire types. No logic.
