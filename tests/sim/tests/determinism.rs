//! What a simulation must show before it shows anything else.

use std::collections::BTreeSet;

use tidemill_sim::{Report, run};

const SEEDS: u64 = 8;

fn simulate(seed: u64) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    run(&runtime, seed)
}

#[test]
fn a_seed_run_twice_leaves_the_same_trace_and_others_do_not() {
    let mut traces = BTreeSet::new();
    let mut power_losses = 0;
    for seed in 0..SEEDS {
        let once = simulate(seed);
        // On a thread of its own, whose hash maps have other keys.
        let twice = std::thread::spawn(move || simulate(seed).trace.lines()).join().unwrap();
        let lines = once.trace.lines();
        for (number, (line, again)) in lines.iter().zip(&twice).enumerate() {
            assert_eq!(line, again, "line {number} of seed {seed}");
        }
        assert_eq!(lines.len(), twice.len(), "seed {seed}");
        assert_eq!(once.violation, None, "seed {seed}");
        assert!(once.acknowledged > 0, "seed {seed}");
        power_losses += once.power_losses;
        assert!(traces.insert(*once.trace.digest().as_bytes()), "seed {seed} is like another");
    }
    assert!(power_losses > 0, "what was acknowledged was never put to the test");
}
