//! Taking one sample of all statistics of one cgroup.
//!
//! | contender | what it does |
//! | --- | --- |
//! | bare preads | one pread(2) of each file that Ringfence reads, on descriptors that are kept; parses nothing |
//! | bare, opened anew | open(2), pread(2) and close(2) of each of them |
//! | ringfence | `StatsReader::sample` |
//! | cgroups-rs | `FsManager::stats`, what Kata Containers calls: opens every file each time |
//! | libcgroups | `CgroupManager::stats`, what youki calls: opens every file each time |
//!
//! The peers choose their files, so that the output says which each of them read.

use std::collections::BTreeSet;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use cgroups_rs::manager::{FsManager, Manager};
use libcgroups::common::{CgroupConfig, CgroupManager, create_cgroup_manager};
use ringfence::Host;

use crate::race::{Contender, race};
use crate::sandbox::{BenchSandbox, names};
use crate::table::Table;
use crate::{Result, version};

pub fn run() -> Result<()> {
    let host = Host::detect()?;
    let bench = BenchSandbox::new(&host)?;

    let mut reader = bench.sandbox.stats_reader()?;
    let mut ours = || {
        black_box(reader.sample()?);
        Ok(())
    };
    let files = bench.reads(&mut ours)?;

    let open: Vec<File> = files.iter().map(File::open).collect::<std::io::Result<_>>()?;
    let (mut buffer, mut another) = (vec![0_u8; 16 << 10], vec![0_u8; 16 << 10]);
    let anew = || {
        for file in &files {
            black_box(File::open(file)?.read_at(&mut another, 0)?);
        }
        Ok(())
    };
    let bare = || {
        for file in &open {
            black_box(file.read_at(&mut buffer, 0)?);
        }
        Ok(())
    };

    let kata = FsManager::new(&bench.name)?;
    let theirs_kata = || {
        black_box(kata.stats());
        Ok(())
    };
    let youki = create_cgroup_manager(CgroupConfig {
        cgroup_path: format!("/{}", bench.name).into(),
        systemd_cgroup: false,
        container_name: bench.name.clone(),
    })?;
    let theirs_youki = || {
        black_box(youki.stats()?);
        Ok(())
    };

    let read = [
        files.clone(),
        files.clone(),
        files.clone(),
        bench.reads(theirs_kata)?,
        bench.reads(theirs_youki).unwrap_or_default(),
    ];
    let finishes = race(vec![
        Contender { name: "bare preads".into(), once: Box::new(bare) },
        Contender { name: "bare, opened anew".into(), once: Box::new(anew) },
        Contender { name: "ringfence".into(), once: Box::new(&mut ours) },
        Contender { name: format!("cgroups-rs {}", version("cgroups-rs")), once: Box::new(theirs_kata) },
        Contender { name: format!("libcgroups {}", version("libcgroups")), once: Box::new(theirs_youki) },
    ]);

    println!("## One sample of a cgroup's statistics ({})\n", crate::machine(&host));
    let mut table = Table::new(&["manager", "median", "quartiles", "ratio", "files", "per file"]);
    for (finish, read) in finishes.iter().zip(&read) {
        match &finish.result {
            Ok((time, ratio)) => {
                let (name, count) = (finish.name.clone(), read.len());
                let each = time.median * 1e6 / count.max(1) as f64;
                table.row([
                    name,
                    format!("{:.1} µs", time.median * 1e6),
                    format!("{:.1}–{:.1}", time.low * 1e6, time.high * 1e6),
                    format!("{ratio:.2}"),
                    count.to_string(),
                    format!("{each:.2} µs"),
                ]);
            }
            Err(error) => println!("{} cannot be measured here: {error}\n", finish.name),
        }
    }
    println!("{table}");
    let measured = finishes.iter().zip(&read).filter(|(finish, _)| finish.result.is_ok());
    what_each_reads(&measured.map(|(finish, read)| (finish.name.as_str(), read)).collect::<Vec<_>>());
    Ok(())
}

fn what_each_reads(read: &[(&str, &BTreeSet<PathBuf>)]) {
    let managers = read.iter().filter(|(name, _)| !name.starts_with("bare"));
    let common = managers.clone().map(|(_, files)| (*files).clone()).reduce(|common, files| &common & &files);
    let common = common.unwrap_or_default();
    println!("read by all: {}", names(&common));
    for (name, files) in managers {
        println!("beside, by {name}: {}", names(&(*files - &common)));
    }
}
