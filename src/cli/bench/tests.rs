//! The bare relay and the subscribers together, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::baseline::{Sockets, frame};
use super::books::Books;
use super::plan::{Filter, Plan, Policy, Written};
use super::subscriber::{Subscriber, System, Wish};
use super::verifier::Verifier;
use super::writer::row_id;
use super::*;

#[tokio::test]
async fn a_bare_relays_rows_arrive_at_every_socket_and_are_counted() {
    let sockets = Sockets::listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let plan = Plan {
        subscribers: 3,
        policy: Policy::Open,
        filter: Filter::None,
        transaction_size: 1,
        writers: 1,
        limit: 100,
    };
    let clock = Clock::start();
    let books = Arc::new(Books::new(7, clock).unwrap());
    let stop = CancellationToken::new();
    let mut receivers = Vec::new();
    for number in 0..plan.subscribers {
        let subscriber =
            Subscriber::connect(System::Baseline, sockets.address(), "", &Wish::default())
                .await
                .unwrap();
        let (books, stop) = (Arc::clone(&books), stop.clone());
        let verifier = Verifier::new(plan, number);
        receivers.push(tokio::spawn(async move {
            subscriber.receive(verifier, &books, stop).await
        }));
    }
    for row in 0..100 {
        let (id, sent) = (row_id(7, row).to_string(), clock.now().to_string());
        let columns = [("id", Some(&*id)), ("sent", Some(&*sent)), ("x\"", None)];
        sockets.send(frame(columns.into_iter()));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while books.delivered.load(Ordering::Relaxed) < 300 {
        assert!(Instant::now() < deadline, "{books:?}");
        // A counter rings for nobody.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    let written = Written {
        transactions: vec![100],
    };
    for receiver in receivers {
        let tally = receiver.await.unwrap().finish(&written);
        assert!(tally.is_clean(), "{tally:?}");
        assert_eq!(tally.delivered, 100);
    }
    let latency = books.latency.lock().unwrap().percentiles().unwrap();
    assert!(latency.max < 10_000_000, "{latency:?}");
    assert_eq!(*books.broken.lock().unwrap(), None);
}
