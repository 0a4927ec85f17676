//! Parser of `/proc/self/mountinfo`.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount: a line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    id: u32,
    parent: u32,
    /// The directory of the file system that is the root of this mount.
    pub(super) root: Cow<'a, Path>,
    /// Where it is mounted.
    pub(super) point: Cow<'a, Path>,
    pub(super) kind: MountKind<'a>,
}

/// What is mounted, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountKind<'a> {
    /// A version 1 hierarchy, with the options that name its controllers.
    CgroupV1 {
        options: &'a str,
    },
    CgroupV2,
    Other,
}

/// All mounts, in the order of the file. Lines that cannot be understood are skipped.
pub(super) fn parse(text: &[u8]) -> Vec<Mount<'_>> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER_OPTIONS`, as proc_pid_mountinfo(5) has it.
fn parse_line(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let _options = fields.next()?;
    let mut fields = fields.skip_while(|tag| *tag != b"-").skip(1);
    let kind = match fields.next()? {
        b"cgroup" => {
            let _source = fields.next()?;
            MountKind::CgroupV1 { options: std::str::from_utf8(fields.next()?).ok()? }
        }
        b"cgroup2" => MountKind::CgroupV2,
        _ => MountKind::Other,
    };
    Some(Mount { id, parent, root, point, kind })
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The kernel writes space, tab, newline and backslash as three octal digits: `\040`.
fn unescape(text: &[u8]) -> Cow<'_, Path> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(Path::new(OsStr::from_bytes(text)));
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    Cow::Owned(PathBuf::from(std::ffi::OsString::from_vec(plain)))
}

/// Whether the mount is what one reaches at its mount point, not hidden below another mount.
pub(super) fn is_reachable(mounts: &[Mount<'_>], mount: &Mount<'_>) -> bool {
    if mounts
        .iter()
        .any(|other| other.parent == mount.id && other.id != mount.id && other.point == mount.point)
    {
        return false;
    }
    // On the way from the root, no sibling may be mounted at or above the place where the path goes on. The root of an
    // initramfs (rootfs) is listed as its own parent, and is no sibling of the mounts in it.
    let mut below = mount;
    for _ in 0..mounts.len() {
        let is_sibling =
            |other: &Mount<'_>| other.parent == below.parent && ![below.id, below.parent].contains(&other.id);
        let hides = |other: &Mount<'_>| is_sibling(other) && below.point.starts_with(&other.point);
        let parent = mounts.iter().find(|other| other.id == below.parent && other.id != below.id);
        let Some(parent) = parent else { return true };
        if mounts.iter().any(hides) {
            return false;
        }
        below = parent;
    }
    // A circle of parents: no kernel writes one.
    false
}

/// The mount that holds `path`.
pub(super) fn mount_of<'a, 'b>(mounts: &'b [Mount<'a>], path: &Path) -> Option<&'b Mount<'a>> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point) && is_reachable(mounts, mount))
        .max_by_key(|mount| mount.point.as_os_str().len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(text: &str) -> Vec<(String, bool)> {
        let mounts = parse(text.as_bytes());
        mounts.iter().map(|m| (m.point.display().to_string(), is_reachable(&mounts, m))).collect()
    }

    #[test]
    fn a_line_is_parsed_with_any_number_of_tags() {
        for tags in ["", "shared:9 ", "shared:1 master:2 ", "propagate_from:3 unbindable "] {
            let line = format!(
                "32 31 0:29 /docker/x /sys/fs/cgroup/cpu,cpuacct rw,nosuid {tags}- cgroup cgroup rw,cpu,cpuacct"
            );
            let mounts = parse(line.as_bytes());
            assert_eq!(
                mounts,
                [Mount {
                    id: 32,
                    parent: 31,
                    root: Path::new("/docker/x").into(),
                    point: Path::new("/sys/fs/cgroup/cpu,cpuacct").into(),
                    kind: MountKind::CgroupV1 { options: "rw,cpu,cpuacct" },
                }]
            );
        }
    }

    #[test]
    fn octal_escapes_are_resolved_and_broken_ones_kept() {
        for (escaped, plain) in [
            ("/a\\040b", "/a b"),
            ("/a\\134b\\011", "/a\\b\t"),
            ("/a\\04", "/a\\04"),
            ("/a\\", "/a\\"),
            ("/a\\999", "/a\\999"),
            ("/a\\\\040", "/a\\ "),
            ("/\\303\\274", "/ü"),
        ] {
            assert_eq!(*unescape(escaped.as_bytes()), *Path::new(plain), "{escaped}");
        }
    }

    #[test]
    fn lines_that_cannot_be_understood_are_skipped() {
        let text = "\n\
            x 27 0:21 / /proc rw - proc proc rw\n\
            23 27 0:22 / /sys rw,relatime\n\
            24 27 0:22 / /a rw -\n\
            25 27 0:22 / /b rw - cgroup\n\
            26 27 0:22 / /c rw - cgroup cgroup\n\
            99999999999 27 0:22 / /d rw - proc proc rw\n\
            31 23 0:28 / /sys/fs/cgroup rw - cgroup2  rw";
        let mounts = parse(text.as_bytes());
        assert_eq!(mounts.len(), 1);
        // An empty source leaves two spaces.
        assert_eq!(mounts[0].kind, MountKind::CgroupV2);
    }

    #[test]
    fn what_lies_below_a_later_mount_is_not_reachable() {
        let text = "\
            1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:1 / /sys rw - sysfs sysfs rw\n\
            3 2 0:2 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            4 3 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            5 2 0:4 / /sys/fs rw - tmpfs tmpfs rw\n\
            6 5 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
            7 1 0:3 / /mnt rw - cgroup cgroup rw,pids\n\
            8 7 0:5 / /mnt rw - tmpfs tmpfs rw\n\
            9 8 0:6 / /mnt/x rw - cgroup cgroup rw,memory\n\
            10 1 0:6 / /mn rw - cgroup cgroup rw,freezer\n";
        let reachable: Vec<bool> = points(text).into_iter().map(|(_, reachable)| reachable).collect();
        assert_eq!(reachable, [true, true, false, false, true, true, false, true, true, true]);
    }

    #[test]
    fn mounts_in_an_initramfs_are_reachable() {
        let text = "\
            1 1 0:2 / / rw - rootfs rootfs rw\n\
            25 1 0:23 / /sys rw - sysfs sys rw\n\
            29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
            30 1 0:2 / /hidden/a rw - cgroup2 cgroup2 rw\n\
            31 1 0:2 / /hidden rw - tmpfs tmpfs rw\n";
        let reachable: Vec<bool> = points(text).into_iter().map(|(_, reachable)| reachable).collect();
        assert_eq!(reachable, [true, true, true, false, true]);
    }

    #[test]
    fn parents_in_a_circle_and_parents_outside_of_a_chroot_do_no_harm() {
        assert_eq!(
            points("1 2 0:1 / /a rw - x x rw\n2 1 0:1 / /b rw - x x rw"),
            [("/a".to_owned(), false), ("/b".to_owned(), false)]
        );
        assert_eq!(points("1 1 0:1 / / rw - rootfs rootfs rw"), [("/".to_owned(), true)]);
        assert_eq!(points("7 99 0:1 / / rw - x x rw"), [("/".to_owned(), true)]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(text in "([0-9]{1,2}|/|/a|/a/b| |-|cgroup2?|\n|\\\\|,|\\PC){0,80}", raw in any::<Vec<u8>>()) {
            for bytes in [text.as_bytes(), &raw] {
                let mounts = parse(bytes);
                for mount in &mounts {
                    is_reachable(&mounts, mount);
                }
            }
        }

        #[test]
        fn whatever_is_mounted_reads_back(point in "(/[^/\n]{1,5}){1,4}", id in 0..u32::MAX) {
            let escaped: String = point
                .bytes()
                .flat_map(|b| match b {
                    b' ' | b'\t' | b'\n' | b'\\' | 128.. => format!("\\{b:03o}").into_bytes(),
                    b => vec![b],
                })
                .map(char::from)
                .collect();
            let line = format!("{id} 1 0:1 / {escaped} rw - cgroup2 cgroup2 rw");
            let mounts = parse(line.as_bytes());
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(mounts[0].point.as_os_str().as_bytes(), point.as_bytes());
        }
    }
}
