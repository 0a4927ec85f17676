//! Names: cgroups paths, systemd's units, IDs of sandboxes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{CgroupPath, SandboxId, Subpath, SystemdName};
use ringfence_fuzz::{assert_refused, parts};

fuzz_target!(|data: &[u8]| {
    let [path, parent, prefix] = parts(data).map(str::from_utf8);
    let (Ok(path), Ok(parent), Ok(prefix)) = (path, parent, prefix) else { return };
    if let Ok(id) = path.parse::<SandboxId>() {
        assert_eq!(id.to_string(), path);
        assert!(!path.contains('/') && !matches!(path, "" | "." | ".."));
    }
    match SystemdName::new(path, parent, prefix) {
        Ok(name) => is_sound_unit(&name),
        Err(error) => assert_refused(&error),
    }
    let path: CgroupPath = match path.parse() {
        Ok(path) => path,
        Err(error) => return assert_refused(&error),
    };
    assert_eq!(path.to_string().parse::<CgroupPath>().unwrap(), path);
    let json = serde_json::to_string(&path).unwrap();
    assert_eq!(serde_json::from_str::<CgroupPath>(&json).unwrap(), path);
    assert_eq!(
        (path.for_systemd().is_ok(), path.for_cgroupfs().is_err()),
        (path.is_systemd(), path.is_systemd())
    );
    match &path {
        CgroupPath::Systemd(name) => is_sound_unit(name),
        CgroupPath::Absolute(inside) | CgroupPath::Relative(inside) => is_sound(inside),
    }
    let parents = [Some(CgroupPath::default_parent()), parent.parse().ok()];
    for parent in parents.iter().flatten() {
        for prefix in [None, Some(""), Some(prefix)] {
            let Ok(below) = path.resolve(parent, prefix) else {
                let given = prefix.is_some_and(|prefix| !prefix.is_empty());
                assert!(given || path.is_systemd() || parent.is_systemd(), "{path} below {parent}");
                continue;
            };
            is_sound(&below);
            assert!(below.name().ends_with(path.for_cgroupfs().unwrap().name()));
            if matches!(path, CgroupPath::Relative(_)) {
                let parent = parent.for_cgroupfs().unwrap();
                assert!(below.as_str().starts_with(&format!("{parent}/")), "{below} is not below {parent}");
            }
        }
    }
});

fn is_sound(path: &Subpath) {
    assert!(path.components().count() > 0);
    for name in path.components() {
        assert!(!matches!(name, "" | "." | "..") && !name.contains(['/', '\0', '\n']), "{path}");
        assert!(name.len() <= 255 && !name.starts_with("cgroup."), "{path}");
    }
    // Cleaned once, it stays as it is, unless it reads as a unit of systemd.
    if !path.as_str().contains(':') {
        assert_eq!(format!("/{path}").parse::<CgroupPath>().unwrap(), CgroupPath::Absolute(path.clone()));
    }
}

fn is_sound_unit(name: &SystemdName) {
    assert!(name.unit().len() <= 255 && !name.unit().contains(['/', '@']), "{name}");
    let cgroup = name.cgroup();
    // What systemd escapes is no interface file.
    is_sound(&cgroup);
    assert_eq!(cgroup.name().trim_start_matches('_'), name.unit().trim_start_matches('_'), "{name}");
    let below = cgroup.parent().map(|parent| parent.to_string());
    if !name.is_slice() {
        assert_eq!(below, name.slice_path().map(|slice| slice.to_string()), "{name}");
    }
    assert_eq!(SystemdName::new(name.slice(), name.prefix(), name.name()).unwrap(), *name);
}
