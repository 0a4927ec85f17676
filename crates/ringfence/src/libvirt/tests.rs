use proptest::prelude::*;

use super::*;

const SDA: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

fn device(path: &Path) -> Option<DeviceNumber> {
    (path == Path::new("/dev/sda")).then_some(SDA)
}

fn read(inside: &str) -> Result<(LibvirtDomain, Report)> {
    read_of(Some(Mode::V1), inside)
}

fn read_of(host: Option<Mode>, inside: &str) -> Result<(LibvirtDomain, Report)> {
    let xml = format!("<domain type='kvm'><name>x</name>{inside}</domain>");
    LibvirtDomain::from_xml_of(host, &xml, device)
}

fn resources(inside: &str) -> Resources {
    let (domain, report) = read(inside).unwrap_or_else(|error| panic!("{inside}: {error}"));
    assert_eq!(report.unsupported().count(), 0, "{inside}: {report}");
    domain.resources.validate().unwrap();
    domain.resources
}

/// Setting and value of the lines that strict mode minds.
fn lost(inside: &str) -> Vec<(String, String)> {
    let (_, report) = read(inside).unwrap_or_else(|error| panic!("{inside}: {error}"));
    report.unsupported().map(|line| (line.setting.to_string(), line.value.clone())).collect()
}

fn cpus(text: &str) -> CpuSet {
    text.parse().unwrap()
}

#[test]
fn namespaces_levels_and_attributes_without_end_are_refused_before_parsing() {
    let xmlns = format!("{}{}", "<a xmlns:b='c'>".repeat(4000), "</a>".repeat(4000));
    let attributes: String = (0..20_000).map(|at| format!(" a{at}=''")).collect();
    for (inside, why) in [
        (xmlns, "namespaces"),
        (format!("<a{attributes}/>"), "attributes"),
        (format!("{}{}", "<a>".repeat(50_000), "</a>".repeat(50_000)), "levels"),
    ] {
        let xml = format!("<domain>{inside}</domain>");
        let error = LibvirtDomain::from_xml(&xml, |_| None).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let long = format!("<domain>{}</domain>", " ".repeat(crate::LONGEST_DOCUMENT));
    let error = LibvirtDomain::from_xml(&long, |_| None).unwrap_err();
    assert!(error.to_string().contains("16 MiB"), "{error}");
}

#[test]
fn a_whole_domain_becomes_resources() {
    let xml = "<?xml version='1.0'?>
        <domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'>
          <vcpu placement='static' cpuset='0-3'>2</vcpu>
          <cputune><shares>2048</shares><period>100000</period><quota>25000</quota></cputune>
          <memtune>
            <hard_limit unit='G'>1</hard_limit><soft_limit unit='MiB'>128</soft_limit>
            <swap_hard_limit unit='GiB'>2</swap_hard_limit>
          </memtune>
          <blkiotune>
            <weight>800</weight>
            <device>
              <path>/dev/sda</path><weight>500</weight><read_bytes_sec>10000</read_bytes_sec>
              <write_bytes_sec>0</write_bytes_sec><write_iops_sec>20</write_iops_sec>
            </device>
          </blkiotune>
          <numatune><memory nodeset='0-1,^1'/></numatune>
          <qemu:commandline/>
        </domain>";
    let (domain, report) = LibvirtDomain::from_xml_of(Some(Mode::V1), xml, device).unwrap();
    assert_eq!(
        report.to_string(),
        "cputune.quota = 25000: is for each vCPU: the 2 of them have 50000 together; --cpus-per-vcpu 0.25 holds each to its own\n"
    );
    let mut expected = Resources::new()
        .cpu_shares(2048)
        .cpu_period(100_000)
        .cpu_quota(50_000)
        .cpuset_cpus(cpus("0-3"))
        .cpuset_mems(cpus("0"))
        .memory_limit(1 << 30)
        .memory_reservation(128 << 20)
        .memory_swap(2 << 30)
        .io_weight(800)
        .io_read_bps(SDA, 10_000)
        .io_write_iops(SDA, 20);
    expected.block_io.weight_device.entry(SDA).or_default().weight = Some(500);
    assert_eq!(domain.resources, expected);
    assert_eq!((domain.vcpus, domain.overhead.cpus.clone()), (2, Some(cpus("0-3"))));

    let v2 = domain.into_v2_resources();
    assert_eq!(v2.unified["memory.high"], "134217728");
    let (v2, lost) = v2.to_v2().unwrap();
    assert_eq!(lost, Report::default());
    assert_eq!(
        (v2.unified["cpu.max"].as_str(), v2.unified["memory.swap.max"].as_str()),
        ("50000 100000", "1073741824")
    );
    assert!(!v2.unified.contains_key("memory.low"));
}

#[test]
fn sizes_are_of_kib_unless_they_have_a_unit() {
    for (unit, bytes) in [
        ("", 3 << 10),
        (" unit='b'", 3),
        (" unit='bytes'", 3),
        (" unit='KB'", 3_000),
        (" unit='k'", 3 << 10),
        (" unit='KiB'", 3 << 10),
        (" unit='MB'", 3_000_000),
        (" unit='M'", 3 << 20),
        (" unit='mib'", 3 << 20),
        (" unit='GB'", 3_000_000_000),
        (" unit='TiB'", 3 << 40),
    ] {
        let found = resources(&format!("<memtune><hard_limit{unit}> 3 </hard_limit></memtune>"));
        assert_eq!(found.memory.limit, Some(Limit::Value(bytes)), "{unit}");
    }
    // What libvirt writes for no limit, and 0, ask for nothing.
    for none in ["9007199254740991", "9007199254740992", "0"] {
        let limits =
            format!("<memtune><hard_limit>{none}</hard_limit><soft_limit>{none}</soft_limit></memtune>");
        assert_eq!(resources(&limits), Resources::new(), "{none}");
    }
}

#[test]
fn quotas_below_zero_are_none_and_zero_says_nothing() {
    for (text, quota, period) in [
        ("<quota>-1</quota>", Some(Limit::Max), None),
        ("<quota>-50</quota><period>0</period>", Some(Limit::Max), None),
        ("<quota>0</quota><period>50000</period>", None, Some(50_000)),
        ("<quota>1000</quota>", Some(Limit::Value(1000)), None),
        ("<global_quota>-1</global_quota>", Some(Limit::Max), None),
        (
            "<global_quota>30000</global_quota><global_period>20000</global_period>",
            Some(Limit::Value(30_000)),
            Some(20_000),
        ),
    ] {
        let cpu = resources(&format!("<cputune>{text}</cputune>")).cpu;
        assert_eq!((cpu.quota, cpu.period), (quota, period), "{text}");
    }
    let plugged = "<vcpu current='3'>8</vcpu><cputune><quota>1000</quota></cputune>";
    assert_eq!(resources(plugged).cpu.quota, Some(Limit::Value(3000)));
    let listed = "<vcpu>4</vcpu><vcpus><vcpu id='0' enabled='yes'/><vcpu id='1' enabled='no'/></vcpus><cputune><quota>1000</quota></cputune>";
    assert_eq!(resources(listed).cpu.quota, Some(Limit::Value(1000)));
}

#[test]
fn the_smaller_of_the_quota_of_the_vcpus_and_the_global_quota_counts() {
    let vcpus = "<vcpu>2</vcpu>";
    for (text, quota, period, lost) in [
        // A quota of -1 leaves the global one.
        ("<quota>-1</quota><global_quota>150000</global_quota>", Some(150_000), None, 0),
        ("<quota>0</quota><global_quota>150000</global_quota>", Some(150_000), None, 0),
        ("<period>50000</period><global_quota>150000</global_quota>", Some(150_000), None, 0),
        (
            "<quota>-1</quota><period>5000</period><global_quota>9000</global_quota><global_period>6000</global_period>",
            Some(9000),
            Some(6000),
            0,
        ),
        // Both finite: twice 80 % against 150 %, twice 70 %, and 150 % in another period.
        ("<quota>80000</quota><global_quota>150000</global_quota>", Some(150_000), None, 0),
        ("<quota>70000</quota><global_quota>150000</global_quota>", Some(140_000), None, 1),
        (
            "<quota>8000</quota><period>10000</period><global_quota>30000</global_quota><global_period>20000</global_period>",
            Some(30_000),
            Some(20_000),
            0,
        ),
        (
            "<quota>7000</quota><period>10000</period><global_quota>30000</global_quota><global_period>20000</global_period>",
            Some(14_000),
            Some(10_000),
            1,
        ),
        ("<quota>75000</quota><global_quota>150000</global_quota>", Some(150_000), None, 1),
        ("<quota>75000</quota><global_quota>-1</global_quota>", Some(150_000), None, 0),
    ] {
        let text = format!("{vcpus}<cputune>{text}</cputune>");
        let (domain, report) = read(&text).unwrap();
        let cpu = &domain.resources.cpu;
        assert_eq!((cpu.quota, cpu.period), (quota.map(Limit::Value), period), "{text}");
        assert_eq!(report.unsupported().count(), lost, "{text}: {report}");
    }
    let (domain, _) = read("<cputune><quota>-1</quota><global_quota>9000</global_quota></cputune>").unwrap();
    assert_eq!(domain.each.vcpu.cpu.quota, Some(Limit::Max));
}

#[test]
fn shares_of_a_v2_host_keep_their_ratio_to_the_default() {
    let shares = |shares: u64| format!("<cputune><shares>{shares}</shares></cputune>");
    for (weight, oci) in [(1, 11), (50, 512), (100, 1024), (200, 2048), (10_000, 102_400)] {
        let (domain, report) = read_of(Some(Mode::V2), &shares(weight)).unwrap();
        assert!(report.is_empty(), "{report}");
        assert_eq!(domain.resources, Resources::new().cpu_shares(oci), "{weight}");
        let v2 = domain.into_v2_resources();
        assert_eq!(v2, Resources::new().unified("cpu.weight", weight.to_string()));
        assert_eq!(v2.to_v2().unwrap().0.unified["cpu.weight"], weight.to_string());
    }
    for (host, value, allowed) in [
        (Some(Mode::V2), 10_001, "1 to 10000"),
        (Some(Mode::V1), 1, "2 to 262144"),
        (Some(Mode::Hybrid), 1, "2 to 262144"),
        (None, 262_145, "1 to 262144"),
    ] {
        let error = read_of(host, &shares(value)).unwrap_err();
        assert_eq!(error.setting(), Some("cputune.shares"));
        assert!(error.message().contains(allowed), "{error}");
    }
}

#[test]
fn the_scale_of_shares_that_is_assumed_is_reported() {
    for (value, weight, oci, lost) in [
        (1, Some(1), 11, 0),
        (2, None, 2, 1),
        (200, None, 200, 1),
        (10_000, None, 10_000, 1),
        (20_000, None, 20_000, 0),
    ] {
        let text = format!("<cputune><shares>{value}</shares></cputune>");
        let (domain, report) = read_of(None, &text).unwrap();
        assert_eq!((domain.cpu_weight, domain.resources.cpu.shares), (weight, Some(oci)), "{value}");
        assert_eq!(report.unsupported().count(), lost, "{value}: {report}");
        assert!(lost == 0 || report.to_string().contains("--libvirt-host"), "{report}");
    }
    assert!(read_of(None, "<cputune><shares>0</shares></cputune>").unwrap().1.is_empty());
}

#[test]
fn automatic_placement_of_vcpus_is_reported() {
    assert_eq!(lost("<vcpu placement='auto'>2</vcpu>"), [("vcpu.placement".to_owned(), "auto".to_owned())]);
    assert!(lost("<vcpu placement='static'>2</vcpu>").is_empty());
}

#[test]
fn comments_inside_a_value_do_not_cut_it() {
    let text = "<vcpu>1<!-- x -->2</vcpu><cputune><quota>1<!-- a -->00<?p?>00</quota><shares><![CDATA[51]]>2</shares></cputune>
        <memtune><hard_limit unit='M'><!-- the limit -->1<!---->6</hard_limit></memtune>
        <blkiotune><device><path>/dev/<!-- x -->sda</path><read_iops_sec>1<!-- x -->0</read_iops_sec></device></blkiotune>";
    let (domain, _) = read(text).unwrap();
    let expected =
        Resources::new().cpu_quota(120_000).cpu_shares(512).memory_limit(16 << 20).io_read_iops(SDA, 10);
    assert_eq!((domain.vcpus, domain.resources), (12, expected));
}

#[test]
fn the_emulator_is_the_overhead() {
    let text = "<cputune><emulator_quota>50000</emulator_quota><emulator_period>200000</emulator_period>
        <iothread_quota>1000</iothread_quota><quota>2000</quota><global_quota>9000</global_quota></cputune>";
    let (domain, report) = read(text).unwrap();
    assert_eq!((domain.overhead.quota, domain.overhead.period), (Some(Limit::Value(50_000)), Some(200_000)));
    assert!(
        report.to_string().contains("50000 200000: is for the overhead: --overhead-cpus 0.25\n"),
        "{report}"
    );
    let settings = ["cputune.global_quota", "cputune.emulator_quota", "cputune.iothread_quota"];
    assert!(lost(text).iter().map(|(setting, _)| setting.as_str()).eq(settings), "{report}");
}

#[test]
fn pins_become_the_cpus_of_all_vcpus_where_each_has_some() {
    let pin = |vcpu: u32, cpus: &str| format!("<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>");
    for (vcpu, pins, all, reported) in [
        ("<vcpu>2</vcpu>", pin(0, "1-4,^2") + &pin(1, "1,3-4"), Some("1,3-4"), 0),
        ("<vcpu>2</vcpu>", pin(0, "0") + &pin(1, "1"), Some("0-1"), 2),
        ("<vcpu>2</vcpu>", pin(0, "0"), None, 1),
        ("<vcpu cpuset='4-5'>2</vcpu>", pin(0, "0"), Some("0,4-5"), 2),
        ("<vcpu cpuset='4-5' placement='auto'>2</vcpu>", String::new(), None, 1),
        ("<vcpu>1</vcpu>", pin(0, "0") + &pin(1, "1"), Some("0"), 0),
        ("<vcpu>1</vcpu>", pin(0, "0") + "<emulatorpin cpuset='0'/>", Some("0"), 0),
        ("<vcpu>1</vcpu>", pin(0, "0") + "<emulatorpin cpuset='1'/>", Some("0"), 1),
        ("<vcpu>1</vcpu>", "<iothreadpin iothread='1' cpuset='5,6'/>".to_owned(), None, 1),
    ] {
        let text = format!("{vcpu}<cputune>{pins}</cputune>");
        let (domain, report) = read(&text).unwrap();
        assert_eq!(domain.resources.cpu.cpus, all.map(cpus), "{text}");
        assert_eq!(report.unsupported().count(), reported, "{text}: {report}");
    }
}

#[test]
fn what_has_no_place_in_a_cgroup_is_reported() {
    for (text, setting, value) in [
        ("<memtune><min_guarantee unit='M'>1</min_guarantee></memtune>", "memtune.min_guarantee", "1048576"),
        ("<memtune><other>1</other></memtune>", "memtune.other", ""),
        (
            "<cputune><vcpusched vcpus='0' scheduler='fifo'/></cputune>",
            "cputune.vcpusched",
            "vcpus=0 scheduler=fifo",
        ),
        ("<cputune><cachetune vcpus='0-3'/></cputune>", "cputune.cachetune", "vcpus=0-3"),
        ("<blkiotune><device><path>/dev/gone</path></device></blkiotune>", "blkiotune.device", "/dev/gone"),
        ("<numatune><memory mode='interleave' nodeset='0'/></numatune>", "numatune.memory", "0"),
        ("<numatune><memory placement='auto' nodeset='0'/></numatune>", "numatune.memory", "0"),
        ("<numatune><memnode cellid='0' nodeset='1'/></numatune>", "numatune.memnode", "1"),
    ] {
        assert_eq!(lost(text), [(setting.to_owned(), value.to_owned())], "{text}");
    }
}

#[test]
fn what_libvirt_would_not_take_is_refused_by_name() {
    for (text, setting, value) in [
        ("<cputune><shares>1</shares></cputune>", "cputune.shares", "1"),
        ("<cputune><shares>2</shares><shares>3</shares></cputune>", "cputune.shares", "3"),
        ("<cputune><quota>999</quota></cputune>", "cputune.quota", "999"),
        ("<cputune><quota>-0</quota></cputune>", "cputune.quota", "-0"),
        ("<cputune><quota/></cputune>", "cputune.quota", ""),
        ("<cputune><quota>1e6</quota></cputune>", "cputune.quota", "1e6"),
        ("<vcpu>2</vcpu><cputune><quota>17592186044415</quota></cputune>", "cputune.quota", "17592186044415"),
        ("<cputune><period>1000001</period></cputune>", "cputune.period", "1000001"),
        ("<cputune><vcpupin vcpu='x' cpuset='1'/></cputune>", "cputune.vcpupin.vcpu", "x"),
        ("<cputune><vcpupin vcpu='0'/></cputune>", "cputune.vcpupin", ""),
        ("<cputune><emulatorpin cpuset='^1'/></cputune>", "cputune.emulatorpin", "^1"),
        ("<cputune><emulatorpin cpuset='0-99999'/></cputune>", "cputune.emulatorpin", "0-99999"),
        ("<cputune><emulatorpin cpuset='1,^2-3'/></cputune>", "cputune.emulatorpin", "1,^2-3"),
        ("<cputune><emulatorpin cpuset='0-7:1/2'/></cputune>", "cputune.emulatorpin", "0-7:1/2"),
        ("<memtune><hard_limit>-1</hard_limit></memtune>", "memtune.hard_limit", "-1"),
        ("<memtune><hard_limit unit='X'>1</hard_limit></memtune>", "memtune.hard_limit.unit", "X"),
        ("<memtune><hard_limit unit='EiB'>16</hard_limit></memtune>", "memtune.hard_limit", "16"),
        ("<memtune><swap_hard_limit>1</swap_hard_limit></memtune>", "memtune.swap_hard_limit", "1024"),
        (
            "<memtune><hard_limit>2</hard_limit><swap_hard_limit>1</swap_hard_limit></memtune>",
            "memtune.swap_hard_limit",
            "1024",
        ),
        ("<blkiotune><weight>9</weight></blkiotune>", "blkiotune.weight", "9"),
        ("<blkiotune><device><weight>9</weight></device></blkiotune>", "blkiotune.device", ""),
        (
            "<blkiotune><device><path>/dev/sda</path><read_iops_sec>4294967296</read_iops_sec></device></blkiotune>",
            "blkiotune.device.read_iops_sec",
            "4294967296",
        ),
        ("<numatune><memory mode='lax' nodeset='0'/></numatune>", "numatune.memory.mode", "lax"),
        ("<vcpu>0</vcpu>", "vcpu", "0"),
        ("<vcpu>4294967296</vcpu>", "vcpu", "4294967296"),
        ("<vcpu current='3'>2</vcpu>", "vcpu.current", "3"),
        ("<vcpu placement='numad'>2</vcpu>", "vcpu.placement", "numad"),
        ("<memtune/><memtune/>", "memtune", "memtune"),
    ] {
        let error = read(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
        assert_eq!((error.setting(), error.value()), (Some(setting), Some(value)), "{text}: {error}");
    }
}

#[test]
fn what_is_no_domain_is_refused_and_one_inside_of_a_status_is_read() {
    let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><domain>&b;</domain>";
    let long = format!("<domain>{}</domain>", " ".repeat(crate::LONGEST_DOCUMENT));
    let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
    for text in
        ["", "{}", "<domain>", "<domain></network>", "<network/>", "<domain>&b;</domain>", bomb, &long, &deep]
    {
        let error = LibvirtDomain::from_xml(text, device).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains("domain"), "{error}");
    }
    let status =
        "<domstatus state='running'><domain><cputune><shares>512</shares></cputune></domain></domstatus>";
    let (domain, _) = LibvirtDomain::from_xml(status, device).unwrap();
    assert_eq!(domain.resources, Resources::new().cpu_shares(512));
}

proptest! {
    #[test]
    fn what_is_read_is_what_a_host_can_take_and_nothing_panics(
        name in "shares|quota|period|global_quota|emulator_quota|hard_limit|soft_limit|swap_hard_limit|weight",
        value in "-?[0-9]{0,22}|max| 5 |1e3|\\PC{0,4}",
        unit in prop::option::of("[kmgtpeKMGTPE]?(iB|B|b)?"),
    ) {
        let unit = unit.map(|unit| format!(" unit='{unit}'")).unwrap_or_default();
        for section in ["cputune", "memtune", "blkiotune"] {
            let text = format!("<{section}><{name}{unit}>{value}</{name}></{section}>");
            if let Ok((domain, _)) = read(&text) {
                prop_assert!(domain.resources.validate().is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,60}|<domain>.{0,40}</domain>") {
        _ = LibvirtDomain::from_xml(&text, device);
    }
}
