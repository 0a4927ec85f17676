//! Several ways to do one thing, timed in turns, so that what disturbs the machine disturbs all of them.

use std::time::{Duration, Instant};

use crate::Result;

/// One of the ways.
pub struct Contender<'a> {
    pub name: String,
    /// Does it once. An error takes it out of the race.
    pub once: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// What came of it, in the order in which the contenders were given.
pub struct Finish {
    pub name: String,
    /// Seconds for once, and median of the rounds' ratios to the first contender; or why there are none.
    pub result: std::result::Result<(Spread, f64), String>,
}

const ROUNDS: usize = 201;

/// A turn lasts about this long, well above what the clock resolves and well below a slice of the scheduler.
const TURN: Duration = Duration::from_millis(2);

/// Races the contenders against the first of them.
pub fn race(contenders: Vec<Contender<'_>>) -> Vec<Finish> {
    let mut finishes: Vec<Finish> = contenders
        .iter()
        .map(|contender| Finish { name: contender.name.clone(), result: Ok((Spread::default(), 0.0)) })
        .collect();
    let mut running = Vec::new();
    for (at, mut contender) in contenders.into_iter().enumerate() {
        match warm_up(&mut contender) {
            Ok(repeats) => running.push((at, contender, repeats, Vec::new())),
            Err(error) => finishes[at].result = Err(error.to_string()),
        }
    }
    for round in 0..ROUNDS {
        // Nobody always comes first.
        let first = round % running.len();
        for turn in 0..running.len() {
            let place = (first + turn) % running.len();
            let (at, contender, repeats, times) = &mut running[place];
            match timed(contender, *repeats) {
                Ok(time) => times.push(time),
                Err(error) => finishes[*at].result = Err(error.to_string()),
            }
        }
    }
    let base = running[0].3.clone();
    for (at, _, _, times) in running {
        if finishes[at].result.is_ok() {
            let ratios = times.iter().zip(&base).map(|(time, base)| time / base).collect();
            finishes[at].result = Ok((Spread::of(times), Spread::of(ratios).median));
        }
    }
    finishes
}

/// How often it is to be done in a turn.
fn warm_up(contender: &mut Contender<'_>) -> Result<u32> {
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < 10 * TURN {
        (contender.once)()?;
        done += 1;
    }
    Ok((done / 10).max(1))
}

/// Seconds for once.
fn timed(contender: &mut Contender<'_>, repeats: u32) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..repeats {
        (contender.once)()?;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(repeats))
}

/// The median, and the quartiles around it.
#[derive(Clone, Copy, Default)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }
}
