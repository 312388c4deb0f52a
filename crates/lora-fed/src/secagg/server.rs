//! The server's side of one round: it collects, closes each stage, and at the end takes the masks off the sum.
//!
//! Messages go to [`receive`](Server::receive) in any order within a stage; the `close_*` calls end a stage, whether
//! all have answered or not, and return what is to be sent. Whoever has not answered by then has dropped out. If fewer
//! than the threshold are left, the round is given up and everything collected is wiped.

use std::collections::BTreeMap;

use serde_bytes::{ByteArray, Bytes};

use super::error::{Result, SecAggError};
use super::keys::IdentityKey;
use super::mask;
use super::messages::{
    Advertise, Bundle, Consent, Deal, KeyList, Masked, Reveal, SEALED, Sealed, Share, Survivors, Unmask,
    View, parties_view,
};
use super::plan::{PartyId, SERVER, Session};
use super::roster::{Roster, enough};
use super::unmask::unmask;
use super::wire::{self, Envelope, Kind};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Who sent it.
    pub from: PartyId,
    /// Of which kind.
    pub kind: Kind,
    /// False: the same message had come before, and nothing was done.
    pub fresh: bool,
}

/// The result of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The sum of the survivors' vectors, modulo the ring.
    pub vector: Vec<u64>,
    /// Whose vectors are in it.
    pub survivors: Vec<PartyId>,
}

/// The server in one round.
pub struct Server {
    session: Session,
    identity: IdentityKey,
    /// The kind of message awaited; none when the round is over.
    awaits: Option<Kind>,
    seen: BTreeMap<(Kind, PartyId), [u8; 32]>,
    data: Data,
}

/// What was collected.
#[derive(Default)]
struct Data {
    adverts: BTreeMap<PartyId, (Advertise, Vec<u8>)>,
    roster: Option<Roster>,
    commitments: BTreeMap<PartyId, [u8; 32]>,
    /// By receiver, then by dealer.
    sealed: BTreeMap<PartyId, BTreeMap<PartyId, ByteArray<SEALED>>>,
    dealers: View,
    /// Whose vector is in the sum, which is masked.
    masked: Vec<PartyId>,
    sum: Vec<u64>,
    survivors: View,
    consents: BTreeMap<PartyId, Vec<u8>>,
    reveals: BTreeMap<PartyId, Reveal>,
}

impl Server {
    /// Opens a round.
    pub fn open(identity: IdentityKey, session: Session) -> Result<Self> {
        if *session.server() != identity.public() {
            return Err(SecAggError::WrongIdentity("the server".to_owned()));
        }
        let awaits = Some(Kind::Advertise);
        Ok(Self { session, identity, awaits, seen: BTreeMap::new(), data: Data::default() })
    }

    /// Who may send the message that is awaited, in rising order, and has not yet.
    pub fn missing(&self) -> Vec<PartyId> {
        let Some(kind) = self.awaits else { return Vec::new() };
        let fresh = |party: &PartyId| self.may_send(kind, *party) && !self.seen.contains_key(&(kind, *party));
        self.session.plan().parties.iter().copied().filter(fresh).collect()
    }

    /// Takes a party's message. One that came before, byte for byte in its body, is acknowledged again; another in
    /// its place is refused. A message that is refused changes nothing.
    pub fn receive(&mut self, message: &[u8]) -> Result<Receipt> {
        let awaits = self.awaits.ok_or(SecAggError::Over)?;
        let kind = Envelope::parse(message)?.kind;
        if kind.from_server() {
            return Err(SecAggError::WrongKind { got: kind, want: awaits });
        }
        let opened = wire::open(&self.session, kind, message)?;
        let from = opened.sender;
        if let Some(before) = self.seen.get(&(kind, from)) {
            let same = *before == opened.digest;
            return if same {
                Ok(Receipt { from, kind, fresh: false })
            } else {
                Err(SecAggError::Conflict { from, kind })
            };
        }
        if kind != awaits || !self.may_send(kind, from) {
            return Err(SecAggError::OutOfOrder(kind));
        }
        match kind {
            Kind::Advertise => {
                self.data.adverts.insert(from, (opened.decode()?, message.to_vec()));
            }
            Kind::Deal => self.dealt(from, opened.decode()?)?,
            Kind::Masked => {
                let masked: Masked<'_> = opened.decode()?;
                same_view(from, &masked.view, &self.data.dealers)?;
                mask::add_bytes(&mut self.data.sum, self.session.plan().ring, masked.vector)?;
                self.data.masked.push(from);
            }
            Kind::Consent => {
                same_view(from, &opened.decode::<Consent>()?.view, &self.data.survivors)?;
                self.data.consents.insert(from, message.to_vec());
            }
            _ => self.revealed(from, opened.decode()?)?,
        }
        self.seen.insert((kind, from), opened.digest);
        Ok(Receipt { from, kind, fresh: true })
    }

    /// Ends the exchange of keys. The message goes to all who advertised.
    pub fn close_keys(&mut self) -> Result<Vec<u8>> {
        self.close(Kind::Advertise, self.data.adverts.len())?;
        let keys = self.data.adverts.iter().map(|(party, (advert, _))| (*party, *advert)).collect();
        self.data.roster = Some(Roster::new(&self.session, keys));
        let adverts = self.data.adverts.values().map(|(_, message)| Bytes::new(message)).collect();
        self.seal(Kind::KeyList, &KeyList { adverts })
    }

    /// Ends the dealing. Each message goes to the party beside it.
    pub fn close_deals(&mut self) -> Result<Vec<(PartyId, Vec<u8>)>> {
        self.close(Kind::Deal, self.data.commitments.len())?;
        let view = self.roster()?.view;
        self.data.dealers = parties_view(Kind::Bundle, &view, self.data.commitments.keys());
        self.data.sum = vec![0; self.session.plan().len];
        let bundle = |to: &PartyId| {
            let sealed = self.data.sealed.get(to).into_iter().flatten();
            let shares = sealed.map(|(party, bytes)| Sealed { party: *party, bytes: *bytes }).collect();
            Ok((*to, self.seal(Kind::Bundle, &Bundle { to: *to, view, shares })?))
        };
        self.data.commitments.keys().map(bundle).collect()
    }

    /// Ends the collection of vectors. The message goes to all whose vector came.
    pub fn close_masked(&mut self) -> Result<Vec<u8>> {
        self.close(Kind::Masked, self.data.masked.len())?;
        self.data.masked.sort_unstable();
        self.data.survivors = parties_view(Kind::Survivors, &self.data.dealers, self.data.masked.iter());
        let survivors = Survivors { view: self.data.dealers, parties: self.data.masked.clone() };
        self.seal(Kind::Survivors, &survivors)
    }

    /// Ends the collection of consents. The message goes to all who consented.
    pub fn close_consents(&mut self) -> Result<Vec<u8>> {
        self.close(Kind::Consent, self.data.consents.len())?;
        let consents = self.data.consents.values().map(|message| Bytes::new(message)).collect();
        self.seal(Kind::Unmask, &Unmask { consents })
    }

    /// Ends the round: takes the masks off. Everything else that was collected is wiped.
    pub fn finish(&mut self) -> Result<Sum> {
        self.close(Kind::Reveal, self.data.reveals.len())?;
        let Data { roster, commitments, masked, sum, reveals, .. } = std::mem::take(&mut self.data);
        let roster = roster.ok_or(SecAggError::Over)?;
        let vector = unmask(&self.session, &roster, &commitments, &masked, sum, &reveals)?;
        Ok(Sum { vector, survivors: masked })
    }

    /// Gives the round up, and wipes what was collected.
    pub fn abort(&mut self) {
        self.awaits = None;
        self.data = Data::default();
    }

    /// Those of the stage before.
    fn may_send(&self, kind: Kind, party: PartyId) -> bool {
        match kind {
            Kind::Advertise => true,
            Kind::Deal => self.data.adverts.contains_key(&party),
            Kind::Masked => self.data.commitments.contains_key(&party),
            Kind::Consent => self.data.masked.contains(&party),
            _ => self.data.consents.contains_key(&party),
        }
    }

    fn dealt(&mut self, from: PartyId, deal: Deal) -> Result<()> {
        let roster = self.roster()?;
        same_view(from, &deal.view, &roster.view)?;
        let mut peers = roster.keys.keys().filter(|party| **party != from);
        if !deal.shares.iter().map(|share| &share.party).eq(&mut peers) {
            return Err(SecAggError::Parties { kind: Kind::Deal, why: "it is not one share for each peer" });
        }
        for share in deal.shares {
            self.data.sealed.entry(share.party).or_default().insert(from, share.bytes);
        }
        self.data.commitments.insert(from, deal.commitment);
        Ok(())
    }

    fn revealed(&mut self, from: PartyId, reveal: Reveal) -> Result<()> {
        same_view(from, &reveal.view, &self.data.survivors)?;
        let survived = |party: &PartyId| self.data.masked.binary_search(party).is_ok();
        let dealers = || self.data.commitments.keys();
        let of = |shares: &[Share]| shares.iter().map(|share| share.of).collect::<Vec<_>>();
        let sound = of(&reveal.seeds).iter().eq(dealers().filter(|party| survived(party)))
            && of(&reveal.keys).iter().eq(dealers().filter(|party| !survived(party)));
        if !sound {
            let why = "it is not one share for each party";
            return Err(SecAggError::Parties { kind: Kind::Reveal, why });
        }
        self.data.reveals.insert(from, reveal);
        Ok(())
    }

    fn roster(&self) -> Result<&Roster> {
        self.data.roster.as_ref().ok_or(SecAggError::Over)
    }

    /// Ends a stage, or the round where too few are left.
    fn close(&mut self, kind: Kind, have: usize) -> Result<()> {
        match self.awaits {
            None => return Err(SecAggError::Over),
            Some(awaits) if awaits != kind => return Err(SecAggError::OutOfOrder(kind)),
            Some(_) => {}
        }
        if let Err(e) = enough(&self.session, kind, have) {
            self.abort();
            return Err(e);
        }
        self.awaits = Kind::ALL.into_iter().find(|next| *next > kind && !next.from_server());
        Ok(())
    }

    fn seal<T: serde::Serialize>(&self, kind: Kind, body: &T) -> Result<Vec<u8>> {
        wire::seal(&self.session, kind, SERVER, &self.identity, body)
    }
}

fn same_view(from: PartyId, theirs: &View, ours: &View) -> Result<()> {
    if theirs == ours { Ok(()) } else { Err(SecAggError::View(format!("party {from}"))) }
}

/// Shows how far the round is, and nothing that was collected.
impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("awaits", &self.awaits).finish_non_exhaustive()
    }
}
