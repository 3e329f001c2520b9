//! Several misbehaviours at once: what leaves one goes through the next.

use bftd_core::{
    durable::Durable,
    ids::{MemberId, Now},
    message::Message,
};

use crate::{Adversary, Content, Parcel};

/// See the module's header.
pub(crate) struct Together(pub Vec<Box<dyn Adversary>>);

impl Adversary for Together {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        let mut parcels = vec![Parcel::now(to, message.clone())];
        for adversary in &mut self.0 {
            let before = std::mem::take(&mut parcels);
            for Parcel { to, content, delay_us } in before {
                match content {
                    Content::Message(message) => {
                        let after = adversary.outgoing(to, &message);
                        parcels.extend(after.into_iter().map(|parcel| parcel.after(delay_us)));
                    }
                    content => parcels.push(Parcel { to, content, delay_us }),
                }
            }
        }
        parcels
    }

    fn hears(&mut self, from: MemberId, message: &Message) -> bool {
        // All are asked: some keep an account of what they are asked.
        let answers: Vec<_> = self.0.iter_mut().map(|adversary| adversary.hears(from, message)).collect();
        answers.into_iter().all(|hears| hears)
    }

    fn incoming(&mut self, from: MemberId, message: &Message) -> Vec<Parcel> {
        self.0.iter_mut().flat_map(|adversary| adversary.incoming(from, message)).collect()
    }

    fn tick(&mut self, now: Now) -> Vec<Parcel> {
        self.0.iter_mut().flat_map(|adversary| adversary.tick(now)).collect()
    }

    fn restart(&mut self, durable: &mut Durable) {
        self.0.iter_mut().for_each(|adversary| adversary.restart(durable));
    }

    fn unix_ms(&self, honest: u64) -> u64 {
        self.0.iter().fold(honest, |unix_ms, adversary| adversary.unix_ms(unix_ms))
    }
}
