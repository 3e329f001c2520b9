//! A model of the network: latency by place, the sender's line, loss.

use bftd_core::ids::MemberId;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// The longest round trip, in milliseconds.
const MAX_RTT_MS: f64 = 60_000.0;
/// What a packet carries, in bytes.
const PACKET: u64 = 1_200;
/// How long a receiver may wait before it acknowledges (QUIC's `max_ack_delay`), and the least that the sender waits beyond a
/// round trip: together, what a packet that nothing follows costs when it is lost (RFC 9002, §6.2.1).
const ACK_DELAY_NS: u64 = 26_000_000;
/// After so many losses in a row of one packet there is no more.
const MAX_LOSSES: u32 = 10;
/// How many ids a member can have.
const IDS: usize = 256;

/// What messages go through.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Where its round trips come from.
    name: &'static str,
    /// Round trips between sites, in nanoseconds: one row a site, one column a site. Member i is at site i mod their number.
    rtt_ns: Vec<Vec<u64>>,
    /// By how much a message may take longer than half a round trip, as a share of it.
    jitter: f64,
    /// How likely a packet is lost.
    loss: f64,
    /// What each member's line carries, in bits a second; none where it carries all.
    bits_per_s: Option<u64>,
}

/// Why there is no such network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetwork {
    /// No rows.
    #[error("a matrix of round trips needs a row for each site, of milliseconds between commas or blanks")]
    Empty,
    /// A row is too short, or too long.
    #[error("row {row} has {columns} numbers; a matrix of {rows} sites has {rows} in each row")]
    NotSquare {
        /// Which row, from 1.
        row: usize,
        /// How many numbers it has.
        columns: usize,
        /// How many rows there are.
        rows: usize,
    },
    /// No time.
    #[error("`{0}` is no round trip in milliseconds, from 0 to {MAX_RTT_MS}")]
    NoTime(String),
    /// One way is not as long as the other.
    #[error("the round trip from site {from} to site {to} is not as long as that from {to} to {from}")]
    NotSymmetric {
        /// A site, from 1.
        from: usize,
        /// Another one.
        to: usize,
    },
    /// A share out of bounds.
    #[error("{what} of {value} is not from 0 to {most}")]
    NoShare {
        /// Of what.
        what: &'static str,
        /// As a text, for it has a fraction.
        value: String,
        /// The largest.
        most: &'static str,
    },
    /// A line that carries nothing.
    #[error("a line of 0 bit/s carries nothing")]
    NoBandwidth,
}

impl Network {
    /// One site. A round trip of 60 µs, as QUIC takes over loopback; lines of 10 Gbit/s.
    pub fn lan() -> Self {
        Self {
            name: "lan",
            rtt_ns: vec![vec![60_000]],
            jitter: 0.1,
            loss: 0.0,
            bits_per_s: Some(10_000_000_000),
        }
    }

    /// Five sites on four continents (North America, two in Europe, South America, Asia) with lines of 1 Gbit/s. The round trips are
    /// round numbers of the size that clouds publish.
    pub fn wan() -> Self {
        const MS: [[u64; 5]; 5] = [
            [1, 70, 90, 115, 215],
            [70, 1, 25, 180, 175],
            [90, 25, 1, 200, 160],
            [115, 180, 200, 1, 320],
            [215, 175, 160, 320, 1],
        ];
        let rtt_ns = MS.iter().map(|row| row.iter().map(|ms| ms * 1_000_000).collect()).collect();
        Self { name: "wan", rtt_ns, jitter: 0.1, loss: 0.0, bits_per_s: Some(1_000_000_000) }
    }

    /// One site, in which every message takes exactly this long, however large it is.
    pub fn ideal(delay_ns: u64) -> Self {
        Self { name: "ideal", rtt_ns: vec![vec![2 * delay_ns]], jitter: 0.0, loss: 0.0, bits_per_s: None }
    }

    /// The same with other round trips: a matrix of milliseconds as text, a row a line, numbers between commas or blanks. What is
    /// behind a `#` says nothing.
    ///
    /// # Errors
    /// It is no symmetric matrix of times.
    pub fn with_matrix(self, text: &str) -> Result<Self, BadNetwork> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let rows: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        if rows.is_empty() {
            return Err(BadNetwork::Empty);
        }
        let mut rtt_ns = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let words = row.split([',', ';', ' ', '\t']).filter(|word| !word.is_empty());
            let times: Vec<u64> = words.map(milliseconds).collect::<Result<_, _>>()?;
            if times.len() != rows.len() {
                return Err(BadNetwork::NotSquare { row: at + 1, columns: times.len(), rows: rows.len() });
            }
            rtt_ns.push(times);
        }
        let network = Self { name: "matrix", rtt_ns, ..self };
        for from in 0..rows.len() {
            for to in 0..from {
                if network.rtt_between(from, to) != network.rtt_between(to, from) {
                    return Err(BadNetwork::NotSymmetric { from: to + 1, to: from + 1 });
                }
            }
        }
        Ok(network)
    }

    /// The same with one round trip between all members.
    pub fn with_rtt_ns(self, rtt_ns: u64) -> Self {
        Self { name: "rtt", rtt_ns: vec![vec![rtt_ns]], ..self }
    }

    /// The same with messages that take up to this share longer.
    ///
    /// # Errors
    /// More than ten times as long, or less than no time.
    pub fn with_jitter(self, jitter: f64) -> Result<Self, BadNetwork> {
        share("a jitter", jitter, 10.0, "10")?;
        Ok(Self { jitter, ..self })
    }

    /// The same with packets that are lost as often as this.
    ///
    /// # Errors
    /// More than half of them, or less than none.
    pub fn with_loss(self, loss: f64) -> Result<Self, BadNetwork> {
        share("a loss", loss, 0.5, "0.5")?;
        Ok(Self { loss, ..self })
    }

    /// The same with lines of so many bits a second.
    ///
    /// # Errors
    /// None.
    pub fn with_bandwidth(self, bits_per_s: u64) -> Result<Self, BadNetwork> {
        if bits_per_s == 0 {
            return Err(BadNetwork::NoBandwidth);
        }
        Ok(Self { bits_per_s: Some(bits_per_s), ..self })
    }

    /// Where its round trips come from: `lan`, `wan`, `ideal`, `rtt` or `matrix`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The round trips in milliseconds, a row a site, as [`Network::with_matrix`] reads them.
    pub fn rtt_ms(&self) -> Vec<Vec<f64>> {
        self.rtt_ns.iter().map(|row| row.iter().map(|ns| *ns as f64 / 1e6).collect()).collect()
    }

    /// By how much a message may take longer than half a round trip, as a share of it.
    pub fn jitter(&self) -> f64 {
        self.jitter
    }

    /// How likely a packet is lost.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// What each member's line carries, in Mbit/s; none where it carries all.
    pub fn bandwidth_mbit(&self) -> Option<f64> {
        self.bits_per_s.map(|bits| bits as f64 / 1e6)
    }

    /// The longest round trip.
    pub fn largest_rtt_ns(&self) -> u64 {
        let largest = self.rtt_ns.iter().flatten().max().copied().unwrap_or_default();
        largest + (largest as f64 * self.jitter) as u64
    }

    fn rtt_between(&self, from: usize, to: usize) -> u64 {
        self.rtt_ns.get(from).and_then(|row| row.get(to)).copied().unwrap_or_default()
    }

    fn rtt(&self, from: MemberId, to: MemberId) -> u64 {
        let site = |id: MemberId| (usize::from(id.0) - 1) % self.rtt_ns.len().max(1);
        self.rtt_between(site(from), site(to))
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Network", 5)?;
        fields.serialize_field("name", self.name)?;
        fields.serialize_field("rtt_ms", &self.rtt_ms())?;
        fields.serialize_field("jitter", &self.jitter)?;
        fields.serialize_field("loss", &self.loss)?;
        fields.serialize_field("bandwidth_mbit", &self.bandwidth_mbit())?;
        fields.end()
    }
}

fn milliseconds(word: &str) -> Result<u64, BadNetwork> {
    let ms = word.parse().ok().filter(|ms: &f64| (0.0..=MAX_RTT_MS).contains(ms));
    ms.map(|ms| (ms * 1e6).round() as u64).ok_or_else(|| BadNetwork::NoTime(word.to_owned()))
}

fn share(what: &'static str, value: f64, most: f64, most_text: &'static str) -> Result<(), BadNetwork> {
    if (0.0..=most).contains(&value) {
        return Ok(());
    }
    Err(BadNetwork::NoShare { what, value: value.to_string(), most: most_text })
}

/// A network in use.
pub(super) struct Links {
    network: Network,
    /// When each member's line is free again, by its id.
    free_ns: Vec<u64>,
    /// When the last message of each stream arrives: they keep their order. A connection has one for small messages and one for
    /// those with payloads.
    last_ns: Vec<u64>,
}

impl Links {
    pub fn new(network: Network) -> Self {
        Self { network, free_ns: vec![0; IDS], last_ns: vec![0; 2 * IDS * IDS] }
    }

    /// Hands a message of so many bytes to the line now.
    pub fn pass(
        &mut self,
        from: MemberId,
        to: MemberId,
        bytes: u64,
        is_bulk: bool,
        now_ns: u64,
        random: &mut ChaCha8Rng,
    ) -> Passage {
        let Network { jitter, loss, bits_per_s, .. } = self.network;
        let rtt_ns = self.network.rtt(from, to);
        let line_ns = |bytes: u64| bits_per_s.map_or(0, |bits| bytes.saturating_mul(8_000_000_000) / bits);
        let (from, to) = (usize::from(from.0), usize::from(to.0));
        let longer = if jitter > 0.0 { random.random_range(0.0..jitter) } else { 0.0 };
        let way_ns = rtt_ns / 2 + (rtt_ns as f64 / 2.0 * longer) as u64;
        let Lost { rounds, bytes: resent } = lose(bytes, loss, random);
        let wait_ns = (rtt_ns + ACK_DELAY_NS) * ((1 << rounds) - 1);
        let free_ns = &mut self.free_ns[from];
        let sent_ns = now_ns.max(*free_ns) + line_ns(bytes);
        // The line carries the lost packets, too: here in one go with the others, and not when they are sent again.
        *free_ns = sent_ns + line_ns(resent);
        let last_ns = &mut self.last_ns[2 * (IDS * from + to) + usize::from(is_bulk)];
        *last_ns = (*free_ns + way_ns + wait_ns).max(*last_ns);
        Passage { arrival_ns: *last_ns, resent }
    }
}

/// How a message gets to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub arrival_ns: u64,
    /// How many of its bytes are sent again, each time that they are.
    pub resent: u64,
}

/// What of a message is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    /// How often its sender sends again what has not come; it waits twice as long before each time as before the last.
    rounds: u32,
    /// Of all packets that are sent again.
    bytes: u64,
}

/// Draws for each packet of a message how often it is lost. The others come all the same; the message is there when its last packet is.
fn lose(bytes: u64, loss: f64, random: &mut ChaCha8Rng) -> Lost {
    let mut lost = Lost::default();
    if loss == 0.0 {
        return lost;
    }
    for at in 0..bytes.div_ceil(PACKET) {
        let mut losses = 0;
        while losses < MAX_LOSSES && random.random_bool(loss) {
            losses += 1;
        }
        lost.rounds = lost.rounds.max(losses);
        lost.bytes += u64::from(losses) * PACKET.min(bytes - at * PACKET);
    }
    lost
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const ONE: MemberId = MemberId(1);
    const TWO: MemberId = MemberId(2);

    fn arrival(links: &mut Links, to: MemberId, bytes: u64, is_bulk: bool, now_ns: u64) -> u64 {
        links.pass(ONE, to, bytes, is_bulk, now_ns, &mut ChaCha8Rng::seed_from_u64(1)).arrival_ns
    }

    #[test]
    fn a_line_carries_one_message_after_another() {
        let network = Network::ideal(1_000).with_bandwidth(8_000_000).unwrap();
        let mut links = Links::new(network);
        assert_eq!(arrival(&mut links, TWO, 10, false, 0), 10_000 + 1_000);
        assert_eq!(arrival(&mut links, MemberId(3), 10, false, 0), 20_000 + 1_000, "the line is one's own");
        assert_eq!(arrival(&mut links, TWO, 10, false, 50_000), 60_000 + 1_000, "and free again");
    }

    #[test]
    fn a_matrix_places_members_in_turn() {
        let network = Network::lan().with_matrix("1, 8\n8 3 # far\n").unwrap().with_jitter(0.0).unwrap();
        let mut links = Links::new(Network { bits_per_s: None, ..network });
        assert_eq!(arrival(&mut links, TWO, 1, false, 0), 4_000_000);
        assert_eq!(arrival(&mut links, MemberId(3), 1, false, 0), 500_000);
        assert_eq!(links.network.largest_rtt_ns(), 8_000_000);
    }

    #[test]
    fn what_is_lost_is_sent_again_and_holds_up_its_stream() {
        let network = Network::ideal(1_000_000).with_loss(0.5).unwrap();
        let mut links = Links::new(network);
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut last = 0;
        let mut late = 0;
        for now_ns in 0..100 {
            let at = links.pass(ONE, TWO, 100, false, now_ns, &mut random).arrival_ns;
            assert!(at >= last, "messages of a stream keep their order");
            late += u32::from(at > last);
            last = at;
        }
        assert!(last >= 1_000_000 + 2_000_000 + ACK_DELAY_NS, "some were lost: {last}");
        assert!(late < 50, "those behind a lost one wait for it: {late}");
        let other = links.pass(ONE, TWO, 100, true, 100, &mut random).arrival_ns;
        assert!(other < last, "the other stream does not");
    }

    #[test]
    fn only_lost_packets_are_sent_again() {
        const PACKETS: u64 = 300;
        const MESSAGES: u64 = 200;
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let drawn: Vec<_> = (0..MESSAGES).map(|_| lose(PACKETS * PACKET, 0.01, &mut random)).collect();
        let bytes: u64 = drawn.iter().map(|lost| lost.bytes).sum();
        let share = bytes as f64 / (MESSAGES * PACKETS * PACKET) as f64;
        assert!((0.0085..0.012).contains(&share), "each packet is lost once in a hundred times: {share}");
        let rounds: u32 = drawn.iter().map(|lost| lost.rounds).sum();
        // Of 300 packets some get lost in 95 messages of 100, and of those three or so one in 30 is lost once more.
        assert!((190..=205).contains(&rounds), "most messages need one more round: {rounds}");
        assert!(drawn.iter().all(|lost| lost.rounds <= 2 && lost.bytes % PACKET == 0), "{drawn:?}");
        let tail = (0..100).map(|_| lose(PACKET + 7, 0.5, &mut random)).find(|lost| lost.bytes == 7);
        assert_eq!(tail.map(|lost| lost.rounds), Some(1), "a last packet is as long as it is");
    }

    #[test]
    fn a_message_is_there_when_its_last_packet_is() {
        let network = Network::ideal(1_000_000).with_loss(0.5).unwrap().with_bandwidth(8_000_000).unwrap();
        let (mut of_loss, mut of_line) = (ChaCha8Rng::seed_from_u64(2), ChaCha8Rng::seed_from_u64(2));
        let mut links = Links::new(network);
        let mut is_free_ns = 0;
        for _ in 0..20 {
            let lost = lose(3 * PACKET, 0.5, &mut of_loss);
            let passage = links.pass(ONE, TWO, 3 * PACKET, false, is_free_ns, &mut of_line);
            is_free_ns += (3 * PACKET + lost.bytes) * 1_000;
            let waits_ns: u64 = (0..lost.rounds).map(|round| (2_000_000 + ACK_DELAY_NS) << round).sum();
            assert_eq!(passage.resent, lost.bytes);
            assert_eq!(passage.arrival_ns, is_free_ns + 1_000_000 + waits_ns);
            // So that no message waits for the last one.
            is_free_ns = passage.arrival_ns;
        }
    }

    #[test]
    fn bad_matrices_are_refused() {
        let refused = |text: &str| Network::lan().with_matrix(text).unwrap_err();
        assert_eq!(refused(" \n# nothing"), BadNetwork::Empty);
        assert_eq!(refused("1 2\n2"), BadNetwork::NotSquare { row: 2, columns: 1, rows: 2 });
        assert_eq!(refused("1 2\n2 x"), BadNetwork::NoTime("x".to_owned()));
        assert_eq!(refused("-1"), BadNetwork::NoTime("-1".to_owned()));
        assert_eq!(refused("nan"), BadNetwork::NoTime("nan".to_owned()));
        assert_eq!(refused("1 2\n3 1"), BadNetwork::NotSymmetric { from: 1, to: 2 });
        assert!(Network::lan().with_loss(0.6).is_err());
        assert!(Network::lan().with_loss(f64::NAN).is_err());
        assert!(Network::lan().with_jitter(-0.1).is_err());
        assert_eq!(Network::lan().with_bandwidth(0), Err(BadNetwork::NoBandwidth));
    }
}
