//! In the place of the connection, where this library was built without the feature `systemd`.

use super::property::Property;
use crate::error::{Error, ErrorKind, Result};

/// Nothing ever comes of a request.
#[derive(Debug)]
#[expect(dead_code, reason = "nobody answers")]
pub(crate) enum Told {
    All,
    Lacks(String),
}

#[derive(Debug)]
#[expect(dead_code, reason = "nobody answers")]
pub(crate) enum Started {
    Anew,
    Already,
    Lacks(String),
}

#[derive(Debug)]
pub(crate) struct Manager;

fn unsupported<T>() -> Result<T> {
    let why = "this ringfence was built without the feature systemd";
    Err(Error::new(ErrorKind::Unsupported, why).with_setting("driver").with_value("systemd"))
}

impl Manager {
    pub(crate) fn new(_: String) -> Self {
        Self
    }

    pub(crate) fn lacks(&self, _: &str) -> bool {
        false
    }

    pub(crate) fn start(&self, _: &str, _: &str, _: &[Property], _: &[u32]) -> Result<Started> {
        unsupported()
    }

    pub(crate) fn set(&self, _: &str, _: &[Property]) -> Result<Told> {
        unsupported()
    }

    pub(crate) fn attach(&self, _: &str, _: &[u32]) -> Result<()> {
        unsupported()
    }

    pub(crate) fn settle(&self) -> Result<()> {
        unsupported()
    }

    pub(crate) fn attach_below(&self, _: &str, _: &str, _: &[u32]) -> Result<()> {
        unsupported()
    }

    pub(crate) fn stop(&self, _: &str, _: bool) -> Result<bool> {
        unsupported()
    }

    pub(crate) fn stop_own(&self, _: &str, _: &dyn Fn(&str) -> bool) -> Result<bool> {
        unsupported()
    }

    pub(crate) fn is_taken(&self, _: &str) -> Result<bool> {
        unsupported()
    }

    pub(crate) fn description(&self, _: &str) -> Result<Option<String>> {
        unsupported()
    }

    pub(crate) fn version(&self) -> Result<String> {
        unsupported()
    }
}
