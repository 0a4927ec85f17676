//! Reading what the planner needs.

use std::cell::RefCell;

use rustix::io::Errno;

use super::dirs::Dirs;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::{Dir, FileAt, Plan, Want, plan};

/// Plans, and reads what the planner asks for.
pub(crate) fn plan_on(host: &Host, dirs: &mut Dirs<'_>, want: &Want<'_>) -> Result<Plan> {
    let dirs = RefCell::new(dirs);
    let read = |FileAt { hierarchy, path, name, to_write }: FileAt<'_>| {
        let dirs = &mut **dirs.borrow_mut();
        let dir = Dir::new(hierarchy, path);
        match dirs.get(&dir) {
            Ok(_) => {}
            // What is yet to be made.
            Err(Errno::NOENT) if want.create => return Ok(None),
            Err(errno) => return Err(dir.not_opened(host, errno)),
        }
        let read = if to_write { dirs.read_to_write(&dir, name) } else { dirs.read(&dir, name) };
        match read {
            Ok(content) => Ok(Some(content)),
            // A kernel without the file: the planner takes that as its answer.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => {
                Err(Error::kernel("cannot read what is in force", dir.full(host).join(name), errno))
            }
        }
    };
    plan(host, want, &read)
}
