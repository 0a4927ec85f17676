use std::os::unix::fs::symlink;

use super::*;

/// A directory with the beginnings of /dev and /sys.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.write("sys/class/misc/iommu/dev", "10:262\n");
        fake
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    /// A block device with what is right below it.
    fn block(&self, number: &str, name: &str, slaves: &[&str]) {
        let dir = format!("sys/dev/block/{number}");
        self.write(&format!("{dir}/dev"), &format!("{number}\n"));
        self.write(&format!("{dir}/uevent"), &format!("MAJOR=0\nDEVNAME={name}\nDEVTYPE=disk\n"));
        for slave in slaves {
            self.write(&format!("{dir}/slaves/{slave}/dev"), &format!("{slave}\n"));
        }
    }

    fn class(&self, number: &str, class: &str) {
        let dir = self.at(&format!("sys/dev/char/{number}"));
        fs::create_dir_all(&dir).unwrap();
        symlink(format!("../../../class/{class}"), dir.join("subsystem")).unwrap();
    }

    /// The rules beside the one that is given.
    fn needs(&self, path: &str, rule: &str, beneath: Beneath) -> Vec<String> {
        let rule = DeviceRule {
            path: Some(path.into()),
            ..DeviceRule::parse(true, rule, |_| unreachable!()).unwrap()
        };
        let (dev, sys) = (self.at("dev"), self.at("sys"));
        let (rules, _) = Machine { dev: &dev, sys: &sys }.needed(&rule, beneath);
        assert_eq!(rules.first(), Some(&rule));
        assert!(rules.iter().all(|rule| rule.allow && rule.path.is_some()));
        rules.iter().skip(1).map(ToString::to_string).collect()
    }
}

#[test]
fn a_vfio_group_needs_its_container_and_a_vfio_device_the_iommu() {
    let fake = Fake::new();
    // By name, where the kernel knows no such device.
    for (path, needed) in [
        ("/dev/vfio/12", &["c 10:196 rw"][..]),
        ("/dev/vfio/noiommu-0", &["c 10:196 rw"]),
        ("/jail/dev/vfio/3", &["c 10:196 rw"]),
        ("/dev/vfio/devices/vfio7", &["c 10:262 rw"]),
        ("/dev/vfio/vfio", &[]),
        ("/dev/vfio/12a", &[]),
        ("/dev/vfio/devices/vfio", &[]),
        ("/dev/devices/vfio7", &[]),
        ("/dev/12", &[]),
    ] {
        assert_eq!(fake.needs(path, "c 243:0 rw", Beneath::Paths), needed, "{path}");
    }
    // What the kernel says of the number goes before the name.
    fake.class("243:0", "vfio");
    fake.class("511:1", "vfio-dev");
    fake.class("10:200", "misc");
    for (path, number, needed) in [
        ("/dev/a", "243:0", &["c 10:196 rw"][..]),
        ("/dev/b", "511:1", &["c 10:262 rw"]),
        ("/dev/vfio/12", "10:200", &[]),
    ] {
        assert_eq!(fake.needs(path, &format!("c {number} rw"), Beneath::Paths), needed, "{path}");
    }
    fs::remove_dir_all(fake.at("sys/class")).unwrap();
    assert!(fake.needs("/dev/b", "c 511:1", Beneath::Paths).is_empty());
}

#[test]
fn of_what_lies_below_a_disk_only_the_paths_of_a_multipath_disk_come_with_it() {
    let fake = Fake::new();
    fake.block("8:0", "sda", &[]);
    fake.block("8:16", "sdb", &[]);
    fake.block("253:0", "dm-0", &["8:0", "8:16"]);
    fake.write("sys/dev/block/253:0/dm/uuid", "mpath-3600\n");
    fake.block("253:1", "dm-1", &["253:0"]);
    fake.write("sys/dev/block/253:1/dm/uuid", "LVM-abc\n");
    let needs =
        |number: &str, access: &str, beneath| fake.needs("/dev/x", &format!("b {number} {access}"), beneath);
    assert_eq!(needs("253:0", "rwm", Beneath::Paths), ["b 8:0 rw", "b 8:16 rw"]);
    assert_eq!(needs("253:0", "r", Beneath::Paths), ["b 8:0 r", "b 8:16 r"]);
    assert!(needs("253:0", "m", Beneath::Paths).is_empty());
    assert!(needs("253:1", "rw", Beneath::Paths).is_empty());
    assert_eq!(needs("253:1", "rw", Beneath::All), ["b 253:0 rw", "b 8:0 rw", "b 8:16 rw"]);
    assert!(needs("8:0", "rw", Beneath::All).is_empty());
    assert!(needs("9:9", "rw", Beneath::All).is_empty());
}

#[test]
fn disks_that_lie_on_each_other_in_a_ring_end_the_search() {
    let fake = Fake::new();
    fake.block("253:0", "dm-0", &["253:1"]);
    fake.block("253:1", "dm-1", &["253:0"]);
    assert_eq!(fake.needs("/dev/x", "b 253:0 rw", Beneath::All), ["b 253:1 rw"]);
}

#[test]
fn numbers_alone_and_what_is_denied_mean_just_what_they_say() {
    for (allow, path) in [(true, None), (false, Some("/dev/vfio/12".into()))] {
        let rule = DeviceRule { path, ..DeviceRule::parse(allow, "c 243:0 rw", |_| unreachable!()).unwrap() };
        let (rules, report) = rule.with_needed(Beneath::All);
        assert!(rules == [rule] && report.is_empty());
    }
}
