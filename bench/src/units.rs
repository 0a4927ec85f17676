//! Units of systemd: what a sandbox takes beside the bare calls that do the same, of one manager and of eight at once.
//!
//! | stage | what is done |
//! | --- | --- |
//! | start | a scope with limits on CPU time, memory and tasks, and a process in it: until its job is done |
//! | set | another limit on tasks |
//! | stop | with the process inside: until the job is done |

use std::future::poll_fn;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use ringfence::{Host, Profile, Remaining, Resources, Sandbox, SandboxConfig};
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant};

use crate::Result;
use crate::manager::{MEMORY, PERIOD, PIDS, QUOTA};
use crate::race::Spread;
use crate::sandbox::Sleeper;
use crate::table::Table;

const STAGES: [&str; 3] = ["start", "set", "stop"];
const MANAGERS: [(&str, fn(&Host) -> Result<Box<dyn Units>>); 2] =
    [("bare calls", |_| Ok(Box::new(Bare::new()?))), ("ringfence", |host| Ok(Box::new(Ours::new(host))))];
const LIVES: usize = 41;
const AT_ONCE: usize = 8;
/// Lives of each of those.
const OF_EACH: usize = 5;

const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

trait Units: Send {
    fn start(&mut self, name: &str, pid: u32) -> Result<()>;
    fn set(&mut self) -> Result<()>;
    fn stop(&mut self) -> Result<()>;
}

/// What is asked of systemd, and no more.
struct Bare {
    connection: Connection,
    ends: MessageStream,
    unit: String,
}

impl Bare {
    fn new() -> Result<Self> {
        let (connection, ends) = zbus::block_on(async {
            let connection = Connection::system().await?;
            let ends = MatchRule::builder()
                .msg_type(zbus::message::Type::Signal)
                .sender(DESTINATION)
                .member("JobRemoved")
                .build()?;
            let ends = MessageStream::for_match_rule(ends, &connection, None).await?;
            connection.call_method(Some(DESTINATION), OBJECT, Some(MANAGER), "Subscribe", &()).await?;
            zbus::Result::Ok((connection, ends))
        })?;
        Ok(Self { connection, ends, unit: String::new() })
    }

    /// A call that makes a job, and its end.
    fn job<B: serde::Serialize + zbus::wire::DynamicType>(&mut self, method: &str, body: &B) -> Result<()> {
        let (connection, ends, unit) = (&self.connection, &mut self.ends, &self.unit);
        zbus::block_on(async {
            let call = connection.call_method(Some(DESTINATION), OBJECT, Some(MANAGER), method, body).await?;
            let job: OwnedObjectPath = call.body().deserialize()?;
            while let Some(message) = poll_fn(|context| Pin::new(&mut *ends).poll_next(context)).await {
                let message = message?;
                let ended: (u32, OwnedObjectPath, String, String) = message.body().deserialize()?;
                if ended.1 == job {
                    let why = || format!("the job of {unit} ended as {}", ended.3);
                    return if ended.3 == "done" { Ok(()) } else { Err(why().into()) };
                }
            }
            Err("the bus is gone".into())
        })
    }
}

impl Units for Bare {
    fn start(&mut self, name: &str, pid: u32) -> Result<()> {
        self.unit = format!("{name}.scope");
        let properties = vec![
            ("CPUQuotaPerSecUSec", Variant::from(QUOTA * 1_000_000 / PERIOD)),
            ("MemoryMax", Variant::from(MEMORY)),
            ("TasksMax", Variant::from(PIDS)),
            ("PIDs", Variant::from(vec![pid])),
        ];
        let others: [(&str, Vec<(&str, Variant<'_>)>); 0] = [];
        self.job("StartTransientUnit", &(self.unit.clone(), "fail", properties, others.as_slice()))
    }

    fn set(&mut self) -> Result<()> {
        let body = (self.unit.as_str(), true, vec![("TasksMax", Variant::from(PIDS + 1))]);
        let method = "SetUnitProperties";
        let call = self.connection.call_method(Some(DESTINATION), OBJECT, Some(MANAGER), method, &body);
        zbus::block_on(call)?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.job("StopUnit", &(self.unit.clone(), "replace"))
    }
}

struct Ours {
    host: Host,
    sandbox: Option<Sandbox>,
}

impl Ours {
    fn new(host: &Host) -> Self {
        Self { host: host.clone(), sandbox: None }
    }

    fn sandbox(&self) -> Result<&Sandbox> {
        self.sandbox.as_ref().ok_or_else(|| "there is no sandbox".into())
    }
}

impl Units for Ours {
    fn start(&mut self, name: &str, pid: u32) -> Result<()> {
        let limits = Resources::new().cpu_quota(QUOTA).memory_limit(MEMORY).pids_limit(PIDS);
        let path = format!("system.slice:rf:{name}").parse()?;
        let config = SandboxConfig::new(path).resources(limits).profile(Profile::None);
        let (sandbox, _) = Sandbox::create(&self.host, &config)?;
        sandbox.join(pid)?;
        self.sandbox = Some(sandbox);
        Ok(())
    }

    fn set(&mut self) -> Result<()> {
        self.sandbox()?.change(&Resources::new().pids_limit(PIDS + 1))?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.sandbox()?.destroy(Remaining::Kill, Duration::from_secs(30))?;
        Ok(())
    }
}

/// One life; how many seconds each stage took.
fn live(units: &mut dyn Units, name: &str) -> Result<[f64; STAGES.len()]> {
    let inside = Sleeper::start()?;
    let begun = Instant::now();
    units.start(name, inside.id())?;
    let started = begun.elapsed().as_secs_f64();
    let set = units.set();
    let changed = begun.elapsed().as_secs_f64();
    units.stop()?;
    set?;
    let stopped = begun.elapsed().as_secs_f64();
    Ok([started, changed - started, stopped - changed])
}

/// The lives of some managers, each of which has its turn with its own units at the same time as the others; and the seconds
/// that a life of all takes.
fn live_at_once(managers: Vec<Box<dyn Units>>, name: &str) -> Result<f64> {
    let number = managers.len() * OF_EACH;
    let begun = Instant::now();
    let lived = std::thread::scope(|scope| {
        let start = |(at, mut units): (usize, Box<dyn Units>)| {
            let mut lives = move || {
                (0..OF_EACH).try_for_each(|life| live(&mut *units, &format!("{name}-{at}-{life}")).map(drop))
            };
            scope.spawn(move || lives().map_err(|error| error.to_string()))
        };
        let threads: Vec<_> = managers.into_iter().enumerate().map(start).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "it panicked".to_owned())?)
    });
    lived?;
    Ok(begun.elapsed().as_secs_f64() / number as f64)
}

pub fn run() -> Result<()> {
    let host = Host::detect()?;
    if !host.systemd {
        println!("## Units of systemd ({}): there is no systemd here\n", crate::machine(&host));
        return Ok(());
    }
    let name = format!("rf-bench-{}", std::process::id());
    let mut times = [const { [const { Vec::new() }; STAGES.len()] }; MANAGERS.len()];
    let mut managers = MANAGERS.iter().map(|(_, new)| new(&host)).collect::<Result<Vec<_>>>()?;
    for round in 0..=LIVES {
        for turn in 0..managers.len() {
            let at = (round + turn) % managers.len();
            let lived = live(&mut *managers[at], &format!("{name}-{at}-{round}"))?;
            if round > 0 {
                times[at].iter_mut().zip(lived).for_each(|(times, time)| times.push(time));
            }
        }
    }
    println!("## Units of systemd ({}, {LIVES} lives)\n", crate::machine(&host));
    let mut table = Table::new(&["stage", "manager", "median", "quartiles", "ratio"]);
    let mut row = |stage: &str, manager: &str, times: &[f64], floor: &[f64]| {
        let spread = Spread::of(times.to_vec());
        let ratio = spread.median / Spread::of(floor.to_vec()).median;
        let quartiles = format!("{:.1}–{:.1}", spread.low * 1e3, spread.high * 1e3);
        let median = format!("{:.1} ms", spread.median * 1e3);
        table.row([stage.to_owned(), manager.to_owned(), median, quartiles, format!("{ratio:.2}")]);
    };
    for (stage, what) in STAGES.iter().enumerate() {
        for (times_of, (manager, _)) in times.iter().zip(&MANAGERS) {
            row(what, manager, &times_of[stage], &times[0][stage]);
        }
    }
    let mut at_once = [const { Vec::new() }; MANAGERS.len()];
    for round in 0..5 {
        for ((at, (_, new)), times) in MANAGERS.iter().enumerate().zip(&mut at_once) {
            let eight = (0..AT_ONCE).map(|_| new(&host)).collect::<Result<Vec<_>>>()?;
            times.push(live_at_once(eight, &format!("{name}-{at}-{round}"))?);
        }
    }
    for (times, (manager, _)) in at_once.iter().zip(&MANAGERS) {
        row(&format!("a life, {AT_ONCE} at once"), manager, times, &at_once[0]);
    }
    println!("{table}");
    Ok(())
}
