//! Whether the kernel's hypervisor makes virtual machines: `/dev/kvm`.
//!
//! <https://www.kernel.org/doc/html/latest/virt/kvm/api.html>

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

type Result<T, E = Errno> = std::result::Result<T, E>;

/// `_IO(0xAE, …)`, of which the argument is a plain number.
const GET_API_VERSION: libc::Ioctl = 0xAE00;
const CREATE_VM: libc::Ioctl = 0xAE01;

/// The version of the interface: 12 for ever.
pub(crate) fn api_version(kvm: impl AsFd) -> Result<i32> {
    ask(kvm, GET_API_VERSION)
}

/// Makes a virtual machine of the default type. It has no CPU and no memory, and is gone when the descriptor is closed.
pub(crate) fn create_vm(kvm: impl AsFd) -> Result<OwnedFd> {
    let fd = ask(kvm, CREATE_VM)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ask(kvm: impl AsFd, request: libc::Ioctl) -> Result<i32> {
    // SAFETY: both requests take a number and touch no memory of ours. On a device that is no KVM they are unknown.
    let answer = unsafe { libc::ioctl(kvm.as_fd().as_raw_fd(), request, 0) };
    if answer < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(answer)
}

#[cfg(test)]
mod on_a_kernel {
    use super::*;
    use crate::skip::skip;

    #[test]
    fn a_virtual_machine_is_a_descriptor_that_no_child_inherits() {
        let kvm = match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            Ok(kvm) => kvm,
            Err(error) => return skip(&format!("/dev/kvm: {error}")),
        };
        assert_eq!(api_version(&kvm), Ok(12));
        match create_vm(&kvm) {
            Ok(vm) => {
                let flags = rustix::io::fcntl_getfd(&vm).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            }
            Err(errno) => skip(&format!("KVM_CREATE_VM: {errno}")),
        }
    }

    #[test]
    fn another_device_is_no_hypervisor() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(api_version(&null), Err(Errno::NOTTY));
        assert!(create_vm(&null).is_err());
    }
}
