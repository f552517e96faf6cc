//! Dead letters that fail for ever, or whose join is gone, and what they may hold up.

use super::*;
use crate::dead_letters::RetryState;

/// A sink that fails for ever on results whose key begins with `p`.
fn poison(key: &str) -> Outcome {
    if key.starts_with("\"p") { Outcome::Failed("answered 500".to_owned()) } else { Outcome::Delivered }
}

/// Puts letters of keys that begin with `p` into the queue, all of them due now.
fn put_letters(simulation: &mut Simulation, count: u64) {
    simulation.dispatcher.has_letters = true;
    for n in 1..=count {
        let event = Event {
            position: Position { epoch: 1, n },
            join: simulation.join,
            key: format!("\"p{n}\""),
            op: Op::Updated,
            rows: "[1]".to_owned(),
            timestamp: simulation.now.seconds,
            window: None,
        };
        let result = PendingResult { join_name: "j".to_owned(), lineage: "lin".to_owned(), event };
        let now = simulation.now.seconds;
        let retry = RetryState { reason: "answered 500".to_owned(), attempts: 1, retry_at: Some(now) };
        simulation.dispatcher.letters.put("s", &result, &retry, now).unwrap();
    }
}

#[tokio::test]
async fn two_letters_that_never_go_through_hold_up_nobody_in_a_quiet_hour() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.dispatcher.delivery.dlq.retries_max = None;
    simulation.behave(poison);
    simulation.commit(&[("p1", 1), ("p2", 1)]);
    for _ in 0..1_500 {
        simulation.after(1).await;
    }
    simulation.commit(&[("c", 1)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["c=1"], "at once");
    assert_eq!((simulation.letters(), simulation.circuit.is_open()), (2, false));
}

#[tokio::test]
async fn many_letters_that_never_go_through_hold_up_nobody_on_a_busy_sink() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.dispatcher.delivery.dlq.retries_max = None;
    simulation.behave(poison);
    put_letters(&mut simulation, 50);
    for value in 1..=1_000 {
        simulation.commit(&[("c", value)]);
        simulation.after(1).await;
        assert_eq!(simulation.taken(), [format!("c={value}")]);
    }
    assert_eq!(simulation.letters(), 50);
}

#[tokio::test]
async fn a_sink_that_is_away_is_not_stormed_by_its_letters() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.dispatcher.delivery.dlq.retries_max = None;
    simulation.behave(|_| Outcome::Failed("down".to_owned()));
    put_letters(&mut simulation, 1_000);
    for _ in 0..3_600 {
        simulation.after(1).await;
    }
    let failed = simulation.dispatcher.status.failed.value();
    assert!(failed < 150, "{failed} attempts in an hour: a round of them, then one now and then");
    simulation.behave(|_| Outcome::Delivered);
    for _ in 0..700 {
        simulation.after(1).await;
    }
    assert_eq!((simulation.taken().len(), simulation.letters()), (1_000, 0), "all of them, once it is back");
}

#[tokio::test]
async fn a_letter_that_asks_for_time_takes_it_from_letters_alone() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(|_| Outcome::Later("busy".to_owned(), Duration::from_secs(60)));
    put_letters(&mut simulation, 1);
    simulation.after(1).await;
    put_letters(&mut simulation, 2);
    simulation.behave(|key| match key {
        "\"p1\"" => Outcome::Later("busy".to_owned(), Duration::from_secs(60)),
        _ => Outcome::Delivered,
    });
    simulation.commit(&[("c", 1)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["c=1"], "other keys need not wait");
    for _ in 0..150 {
        simulation.after(1).await;
    }
    assert!(simulation.taken().contains(&"p2=1".to_owned()), "another letter has had its turn");
    assert_eq!(simulation.letters(), 1);
}

#[tokio::test]
async fn what_was_deleted_while_the_sink_was_gone_does_not_come_back_as_a_letter() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(failing("\"k\""));
    simulation.commit(&[("k", 1), ("l", 1), ("m", 1)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["l=1", "m=1"]);
    simulation
        .behave(|key| if key == "\"l\"" { Outcome::Delivered } else { Outcome::Failed("no".to_owned()) });
    simulation.delete("m");
    simulation.settle().await;
    assert_eq!((simulation.taken().len(), simulation.letters()), (0, 2));
    simulation.dispatcher.results.forget_other_sinks(&[]).unwrap();
    simulation.delete("k");
    simulation.behave(|_| Outcome::Delivered);
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    simulation.after(3_600).await;
    assert_eq!(simulation.taken(), ["l=1", "m=null"], "what is there, and an end that was yet to be told");
    assert_eq!(simulation.letters(), 0);
}
