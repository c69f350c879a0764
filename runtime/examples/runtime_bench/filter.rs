//! What the default seccomp profile costs: compiling it, loading it, and each call after that.
//!
//! Loaded beside it: the same answers asked call by call, the order in which libseccomp writes a filter unless told
//! otherwise. Since Linux 5.11 the kernel runs a filter once per call number when it loads it, to know the calls that are
//! always allowed; so a filter that asks one by one is paid for again with each container.

use serde_json::{Value, json};
use slipway_runtime::seccomp;
use slipway_runtime::sys::seccomp::install_filter;
use std::time::{Duration, Instant};

const ROUNDS: usize = 100;
const CALLS: u32 = 100_000;

/// What one thread measured: the filters it had, loading the last, a call afterwards.
struct Seen {
    load: Duration,
    call: Duration,
}

pub fn table(profile: &Value) {
    // Not the one that the lives had, which is in the cache.
    let mut profile = profile.clone();
    profile["defaultErrnoRet"] = json!(libc::ENOTSUP);
    let profile = serde_json::from_value(profile).unwrap();
    let begin = Instant::now();
    let filter = seccomp::compile(&profile).unwrap();
    let first = begin.elapsed();
    let begin = Instant::now();
    seccomp::compile(&profile).unwrap();
    let again = begin.elapsed();
    let ours = filter.program();
    let one_by_one = one_by_one(&ours);
    let mut seen: [Vec<Seen>; 3] = Default::default();
    for _ in 0..ROUNDS {
        seen[0].push(measure(None));
        seen[1].push(measure(Some(&ours)));
        seen[2].push(measure(Some(&one_by_one)));
    }
    let micros = |times: Vec<Duration>| {
        let mut times = times;
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    println!(
        "\n{:<28}{:>14}{:>12}{:>16}",
        "seccomp, default profile", "instructions", "load us", "getppid ns"
    );
    let names = [("no filter", 0), ("ours", ours.len()), ("call by call", one_by_one.len())];
    for ((name, length), seen) in names.into_iter().zip(&seen) {
        let load = micros(seen.iter().map(|s| s.load).collect());
        let call = micros(seen.iter().map(|s| s.call).collect()) * 1000.0 / f64::from(CALLS);
        println!("{name:<28}{length:>14}{load:>12.1}{call:>16.1}");
    }
    println!(
        "compiled in {:.0} us, found again in {:.0} us",
        first.as_secs_f64() * 1e6,
        again.as_secs_f64() * 1e6
    );
}

/// In a thread of its own: filters are for good.
fn measure(filter: Option<&[libc::sock_filter]>) -> Seen {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let begin = Instant::now();
            if let Some(filter) = filter {
                install_filter(filter, 0).unwrap();
            }
            let load = begin.elapsed();
            let begin = Instant::now();
            for _ in 0..CALLS {
                std::hint::black_box(nix::unistd::getppid());
            }
            Seen { load, call: begin.elapsed() }
        });
        thread.join().unwrap()
    })
}

/// The same answers to this machine's own calls, one comparison each. Conditions on arguments are left out.
fn one_by_one(filter: &[libc::sock_filter]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let word = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut words = vec![word(LOAD, 0, 0, 0)];
    for number in 0..512 {
        if answer(filter, number) == libc::SECCOMP_RET_ALLOW {
            words.push(word(EQUALS, 0, 1, number));
            words.push(word(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW));
        }
    }
    words.push(word(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    words
}

/// What a filter says of a call whose arguments are all zero: the few instructions that a seccomp filter consists of.
fn answer(filter: &[libc::sock_filter], number: u32) -> u32 {
    const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = filter[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        match u32::from(code) {
            c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                accumulator = [number, ARCHITECTURE].get(k as usize / 4).copied().unwrap_or(0);
            }
            c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += jump(accumulator == k),
            c if c == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += jump(accumulator >= k),
            c if c == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => at += jump(accumulator > k),
            c if c == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => at += jump(accumulator & k != 0),
            c if c == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            c if c == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= k,
            c if c == libc::BPF_RET | libc::BPF_K => return k,
            other => panic!("instruction {other:#x} in a filter of ours"),
        }
    }
}
