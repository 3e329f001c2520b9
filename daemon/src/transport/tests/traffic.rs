//! Frames under way: order, lanes, queues, peers that go and come back.

use super::*;

async fn frames_arrive_in_order(n: usize) {
    const FRAMES: u32 = 2_000;
    let cluster = Cluster::new(n);
    let mut nodes = cluster.start_all().await;
    let size = |lane, number: u32| match lane {
        Lane::Votes => 4 + number as usize % 300,
        Lane::Bulk => 4 + if number.is_multiple_of(100) { 100_000 } else { number as usize % 20_000 },
    };
    for number in 0..FRAMES {
        for (node, from) in nodes.iter().zip(1..) {
            for to in (1..=n as u8).filter(|to| *to != from) {
                for lane in [Lane::Votes, Lane::Bulk] {
                    let mut frame = vec![from; size(lane, number)];
                    frame[..4].copy_from_slice(&number.to_le_bytes());
                    node.send(to, lane, &frame);
                }
            }
        }
        if number.is_multiple_of(50) {
            sleep(Duration::from_millis(1)).await;
        }
    }
    for (node, id) in nodes.iter_mut().zip(1..) {
        let mut expected = HashMap::new();
        for _ in 0..(n - 1) * 2 * FRAMES as usize {
            let (from, lane, frame) = node.next().await;
            let number: &mut u32 = expected.entry((from, lane)).or_default();
            assert_eq!(frame[..4], number.to_le_bytes(), "from {from} to {id}, {lane:?}");
            assert!(frame.len() == size(lane, *number) && frame[4..].iter().all(|byte| *byte == from.0));
            *number += 1;
        }
        // A frame counts as sent when its write is done, which may be after it has arrived.
        let sent = |peer: &PeerStatus| peer.sent.frames == u64::from(2 * FRAMES);
        eventually("all is counted", || node.transport.peers().iter().all(sent)).await;
        for peer in node.transport.peers() {
            assert_eq!((peer.dropped, peer.oversized, peer.breaches), (0, 0, 0));
            assert_eq!(peer.received.frames, u64::from(2 * FRAMES));
            assert_eq!(peer.sent, peer.received, "all send alike");
            assert!(peer.last_received.is_some() && peer.round_trip.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_in_order_between_two() {
    frames_arrive_in_order(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_in_order_between_four() {
    frames_arrive_in_order(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_down_costs_nothing_and_comes_back_soon() {
    let cluster = Cluster::new(2);
    let first = cluster.start(1).await;
    let started = Instant::now();
    let frame = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..1_000 {
        first.transport.send(MemberId(2), Lane::Bulk, frame.clone());
        first.send(2, Lane::Votes, b"lost");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "send never waits");
    assert!(first.peer(2).dropped >= 1_000 - 32, "the queue is bounded");
    assert!(!first.peer(2).connected);
    // Long enough for the waits to have grown to their longest.
    sleep(Duration::from_secs(6)).await;

    let mut second = cluster.start(2).await;
    let started = Instant::now();
    first.send_until_received(&mut second, 2, b"found").await;
    assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    eventually("all is counted", || second.peer(1).received == first.peer(2).sent).await;
    let received = second.peer(1).received;
    assert!(received.frames < 100 && received.bytes < 1 << 20, "nothing stale came with it: {received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_the_same_key_goes_on() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all().await;
    let second = nodes.pop().unwrap();
    let mut first = nodes.pop().unwrap();
    second.transport.shutdown().await;
    eventually("told", || !first.peer(2).connected && !first.peer(2).inbound).await;
    drop(second);
    let mut second = cluster.start(2).await;
    first.send_until_received(&mut second, 2, b"to the new one").await;
    second.send_until_received(&mut first, 1, b"from the new one").await;
}

#[test]
fn a_crash_and_restart_is_noticed_at_once() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cluster = Cluster::new(2);
    let (here, there) = (runtime(), runtime());
    let first = here.block_on(cluster.start(1));
    let second = there.block_on(cluster.start(2));
    here.block_on(eventually("connected", || first.peer(2).connected && second.peer(1).connected));
    // Ends without a word to the peer, as a killed process does.
    there.shutdown_timeout(PATIENCE);
    drop(second);
    assert!(first.peer(2).connected, "not noticed yet");

    let restarted = Instant::now();
    here.block_on(async {
        let mut second = cluster.start(2).await;
        first.send_until_received(&mut second, 2, b"to the new one").await;
    });
    // Far less than the idle time-out, which is all that is left if the restarted node can't reset the old connection.
    assert!(restarted.elapsed() < Duration::from_millis(2_000), "took {:?}", restarted.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_do_not_hold_up_votes() {
    let cluster = Cluster::new(2);
    let mut nodes = cluster.start_all().await;
    let mut second = nodes.pop().unwrap();
    let first = nodes.pop().unwrap();
    second.inbox.bulk_open.store(false, Ordering::Relaxed);

    // The receiver takes no block: its window fills, then our queue, then the newest are dropped.
    let block = Bytes::from(vec![7; 4 << 20]);
    for _ in 0..20 {
        first.transport.send(MemberId(2), Lane::Bulk, block.clone());
    }
    eventually("the window is full", || first.peer(2).sent.bytes >= 4 << 20).await;
    for number in 0..1_000u32 {
        first.send(2, Lane::Votes, &number.to_le_bytes());
        let (_, lane, frame) = second.next().await;
        assert_eq!((lane, frame.as_ref()), (Lane::Votes, &number.to_le_bytes()[..]));
    }
    let dropped = first.peer(2).dropped;
    assert!((1..20).contains(&dropped), "{dropped} dropped");

    second.inbox.bulk_open.store(true, Ordering::Relaxed);
    second.inbox.gate.add_permits(1);
    for _ in 0..20 - dropped {
        assert_eq!(second.next().await, (MemberId(1), Lane::Bulk, block.clone()));
    }
}
