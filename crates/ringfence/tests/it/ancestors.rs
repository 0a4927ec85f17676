//! What holds for a cgroup is explained from its path alone, whoever made it, on a real kernel.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::time::Duration;

use ringfence::explain::{Ancestors, Decider, Value};
use ringfence::{Cgroup, ErrorKind, Host, Limit, Remaining, Resources};

testbed! {}

const SOON: Duration = Duration::from_secs(30);

#[test]
fn any_cgroup_is_explained_while_it_is_there() {
    let host = Host::detect().unwrap();
    let above = format!("/rf-explain-{}", std::process::id());
    let below = format!("{above}/below");
    let create = |path: &str, pids: u64| {
        Cgroup::create(&host, &path.parse().unwrap(), &Resources::new().pids_limit(pids)).unwrap().0
    };
    let parent = create(&above, 20);
    let child = create(&below, 30);
    let opened = Cgroup::open(&host, &below.parse().unwrap()).unwrap();
    let explained = opened.explain(&"pids".parse().unwrap()).unwrap();

    child.destroy(Remaining::Kill, SOON).unwrap();
    // It still holds the descriptor of the directory, in which there are no files any more.
    let gone = opened.explain(&"pids".parse().unwrap()).unwrap_err();
    // Another cgroup of the same name is another one.
    let impostor = create(&below, 10);
    let other = opened.explain(&"pids".parse().unwrap()).unwrap_err();
    impostor.destroy(Remaining::Kill, SOON).unwrap();
    parent.destroy(Remaining::Kill, SOON).unwrap();

    assert_eq!(explained.effective, Value::Tasks(Limit::Value(20)));
    assert_eq!(explained.decided_by, Some(Decider::Level(above.clone())));
    assert_eq!(explained.files, ["pids.max"]);
    let paths: Vec<_> = explained.chain.iter().map(|level| level.path.as_str()).collect();
    assert_eq!(paths, ["/", &above, &below]);
    assert_eq!(explained.chain.last().unwrap().value, Some(Value::Tasks(Limit::Value(30))));
    assert_eq!(explained.ancestors, Ancestors::All);
    for error in [gone, other] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.path().unwrap().ends_with("below"), "{error}");
    }
}
