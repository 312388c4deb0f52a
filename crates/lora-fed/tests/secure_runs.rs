//! Secure rounds of a run, and of the run that begins after it.

#[allow(dead_code)]
#[path = "common/cast.rs"]
mod cast;

use cast::{Cast, NAMES, federation, settings};
use lora_core::{Error, Result};
use lora_fed::engine::{Engine, Reply, Settings, Task};
use lora_fed::store::Store;

/// Parties remember a run that is over, or whose state is lost: one that begins anew has another name, and one that goes on
/// has its own.
#[test]
fn a_run_that_begins_anew_has_another_name() {
    let mut cast = Cast::new(&NAMES);
    let named = |store: &mut Store, seed| {
        let mut f = federation(Settings { seed, ..settings("ffa") });
        f.resume(store).unwrap();
        f.name_in(store).unwrap();
        f
    };
    let round = |cast: &mut Cast| {
        let mut f = named(&mut cast.store, 0);
        let mut engine = cast.between(|_, _, _| Ok(()));
        let round = cast.round(&mut f, &mut engine).unwrap();
        assert_eq!(round.lost, None);
        (round.round, f.settings().run.clone())
    };
    let (_, first) = round(&mut cast);
    assert!(first.starts_with("a run ") && first.len() > 30, "{first}");
    assert_eq!(round(&mut cast), (2, first.clone()));
    cast.store = Store::open(&cast.dir.path().join("anew")).unwrap();
    let (number, second) = round(&mut cast);
    assert!(number == 1 && second != first, "{second}");
    // Behind a run that came to nothing too, some of whose tries parties may have joined.
    let mut store = Store::open(&cast.dir.path().join("third")).unwrap();
    let run = |store: &mut Store, seed| named(store, seed).settings().run.clone();
    let third = run(&mut store, 0);
    assert_eq!(run(&mut store, 0), third);
    assert_ne!(run(&mut store, 1), third);
}

/// Before vectors may leave: a round that is broken off later would be lost.
#[test]
fn what_the_engine_cannot_carry_is_said_before_anybody_is_asked() {
    struct Narrow;
    impl Engine for Narrow {
        fn clients(&mut self) -> Result<Vec<String>> {
            Err(Error::internal("somebody is asked"))
        }
        fn carries(&self, bytes: u64) -> Result<()> {
            // 12 + 10 + 5 numbers of 8 bytes.
            assert_eq!(bytes, 216);
            Err(Error::unsupported("too wide"))
        }
        fn run(&mut self, _: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
            Err(Error::internal("somebody is asked"))
        }
    }
    let mut cast = Cast::new(&NAMES);
    let mut f = federation(settings("ffa"));
    let refused = cast.round(&mut f, &mut Narrow).unwrap_err().to_string();
    assert!(refused.contains("too wide"), "{refused}");
    let mut engine = cast.between(|_, _, _| Ok(()));
    assert_eq!(cast.round(&mut f, &mut engine).unwrap().lost, None);
}
