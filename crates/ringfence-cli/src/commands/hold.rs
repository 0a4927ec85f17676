//! `hold`: the process of `create --hold`.

use clap::Args;
use ringfence::Result;

use crate::exit::Exit;

/// Do nothing until killed
#[derive(Debug, Args)]
pub struct Hold {}

impl Hold {
    pub fn run(&self) -> Result<Exit> {
        loop {
            std::thread::park();
        }
    }
}
