//! OCI documents out of arbitrary bytes: their fields meet more often than in texts that were mutated.

use serde_json::{Map, Value, json};

/// Text that begins as an object does is left alone; of other bytes each three are a field, its key and its value.
pub fn document(data: &[u8]) -> Option<String> {
    if data.first().is_none_or(|first| matches!(first, b'{' | b' ' | b'\n')) {
        return str::from_utf8(data).ok().map(str::to_owned);
    }
    let mut document = Map::new();
    for [field, key, value] in data.as_chunks().0 {
        set(&mut document, usize::from(*field), usize::from(*key), usize::from(*value));
    }
    Some(Value::Object(document).to_string())
}

const SCALARS: [(&str, &str, Kind); 23] = [
    ("memory", "limit", Kind::Size),
    ("memory", "swap", Kind::Size),
    ("memory", "reservation", Kind::Size),
    ("memory", "kernel", Kind::Size),
    ("memory", "kernelTCP", Kind::Size),
    ("memory", "swappiness", Kind::Number),
    ("memory", "disableOOMKiller", Kind::Bool),
    ("memory", "useHierarchy", Kind::Bool),
    ("memory", "checkBeforeUpdate", Kind::Bool),
    ("cpu", "shares", Kind::Number),
    ("cpu", "weight", Kind::Number),
    ("cpu", "quota", Kind::Size),
    ("cpu", "period", Kind::Number),
    ("cpu", "burst", Kind::Number),
    ("cpu", "idle", Kind::Number),
    ("cpu", "realtimeRuntime", Kind::Size),
    ("cpu", "realtimePeriod", Kind::Number),
    ("cpu", "cpus", Kind::Set),
    ("cpu", "mems", Kind::Set),
    ("pids", "limit", Kind::Size),
    ("blockIO", "weight", Kind::Number),
    ("blockIO", "leafWeight", Kind::Number),
    ("network", "classID", Kind::Number),
];

#[derive(Clone, Copy)]
enum Kind {
    Size,
    Number,
    Bool,
    Set,
}

const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    10,
    60,
    100,
    500,
    1000,
    1023,
    4095,
    4096,
    10_000,
    50_000,
    100_000,
    262_144,
    1_000_000,
    1 << 30,
    1 << 44,
    i64::MAX.cast_unsigned(),
    u64::MAX,
];
const SETS: [&str; 7] = ["", "0", "0-1", "1", "0-3,8", "8191", ","];
const DEVICES: [(u32, u32); 4] = [(8, 0), (8, 16), (253, 0), (4_294_967_295, 1)];
const THROTTLES: [&str; 4] =
    ["throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"];
const PAGES: [&str; 4] = ["2MB", "1GB", "64KB", "2097152B"];
const NAMES: [&str; 4] = ["eth0", "mlx5_1", "a.b", "lo"];
const FILES: [&str; 22] = [
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.swap.max",
    "memory.oom.group",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpus.partition",
    "pids.max",
    "io.max",
    "io.weight",
    "io.bfq.weight",
    "io.latency",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "rdma.max",
    "misc.max",
    "cgroup.freeze",
];
const VALUES: [&str; 19] = [
    "max",
    "0",
    "1",
    "100",
    "50000",
    "64M",
    "50000 100000",
    "max 100000",
    " 1\n",
    "",
    "0-1",
    "root",
    "8:0 rbps=1048576",
    "8:0 rbps=max wbps=2\n8:16 riops=3",
    "default 50",
    "8:0 50",
    "default 10\n8:0 100",
    "mlx5_1 hca_handle=2",
    "mlx5_1 hca_handle=2 hca_object=max",
];

fn pick<T: Copy, const N: usize>(from: [T; N], at: usize) -> T {
    from[at % N]
}

fn set(document: &mut Map<String, Value>, field: usize, key: usize, value: usize) {
    let mut put = |section: &str, name: &str, value: Value| {
        let section = document.entry(section).or_insert_with(|| json!({}));
        section[name] = value;
    };
    let number = pick(NUMBERS, value);
    if let Some((section, name, kind)) = SCALARS.get(field % 40) {
        let value = match kind {
            Kind::Size if value % 8 == 7 => json!(-1),
            Kind::Size | Kind::Number => json!(number),
            Kind::Bool => json!(value % 2 == 1),
            Kind::Set => json!(pick(SETS, value)),
        };
        return put(section, name, value);
    }
    let (major, minor) = pick(DEVICES, key);
    let mut push = |list: &str, item: Value| {
        let (section, name) = list.split_once('.').unwrap_or(("", list));
        let outer = match section {
            "" => &mut *document,
            section => {
                document.entry(section).or_insert_with(|| json!({})).as_object_mut().expect("an object")
            }
        };
        outer.entry(name).or_insert_with(|| json!([])).as_array_mut().expect("a list").push(item);
    };
    match field % 40 {
        23 => {
            let weights = if key % 8 < 4 {
                json!({"weight": number})
            } else {
                json!({"weight": 100, "leafWeight": number})
            };
            let mut item = json!({"major": major, "minor": minor});
            item.as_object_mut().expect("an object").extend(weights.as_object().expect("an object").clone());
            push("blockIO.weightDevice", item);
        }
        at @ 24..=27 => {
            let item = json!({"major": major, "minor": minor, "rate": number});
            push(&format!("blockIO.{}", pick(THROTTLES, at)), item);
        }
        28 | 29 => push("hugepageLimits", json!({"pageSize": pick(PAGES, key), "limit": number})),
        30 => push("network.priorities", json!({"name": pick(NAMES, key), "priority": number})),
        31 | 32 => {
            let name = if field % 2 == 1 { "hcaHandles" } else { "hcaObjects" };
            let devices = document.entry("rdma").or_insert_with(|| json!({}));
            devices[pick(NAMES, key)][name] = json!(number);
        }
        33 => {
            let rules = crate::rules(&[u8::try_from(value).unwrap_or(0), u8::try_from(key).unwrap_or(0), 3]);
            push("devices", serde_json::to_value(&rules[0]).expect("JSON"));
        }
        _ => {
            let files = document.entry("unified").or_insert_with(|| json!({}));
            files[pick(FILES, key)] = json!(pick(VALUES, value));
        }
    }
}
