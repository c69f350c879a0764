//! Prints what a profile costs (the default one unless a file is named): instructions, time to compile, time to load.
//!
//! `cargo run --release -p slipway-runtime --example seccomp [PROFILE.json]`
//!
//! Loading acts on this program's own thread, so each sample runs on a thread of its own.

use slipway_runtime::{seccomp, sys};
use std::collections::HashSet;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let profile = match std::env::args_os().nth(1) {
        Some(path) => serde_json::from_reader(std::fs::File::open(path)?)?,
        None => seccomp::default_profile(&HashSet::new()),
    };
    let first = timed(|| seccomp::compile(&profile));
    let again = timed(|| seccomp::compile(&profile));
    let filter = again.0?;
    println!("instructions      {:>8}", filter.instructions.len());
    println!("compile           {:>8.1} us", micros(first.1));
    println!("compile, known    {:>8.1} us", micros(again.1));
    println!("make the profile  {:>8.1} us", micros(timed(|| seccomp::default_profile(&HashSet::new())).1));
    rustix::thread::set_no_new_privs(true)?;
    let mut loads: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let (program, flags) = (filter.program(), filter.flags);
        let load = move || timed(|| sys::seccomp::install_filter(&program, flags));
        let (result, time) = std::thread::spawn(load).join().map_err(|_| "the loading thread panicked")?;
        result?;
        loads.push(time);
    }
    loads.sort_unstable();
    println!("load, p10 and p50 {:>8.1} {:.1} us", micros(loads[5]), micros(loads[25]));
    Ok(())
}

fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = act();
    (result, start.elapsed())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
