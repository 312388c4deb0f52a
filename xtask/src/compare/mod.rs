//! `compare`: which method, at which rank.
#![allow(dead_code)]

pub(crate) mod report;
pub(crate) mod results;
