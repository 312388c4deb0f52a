//! A party's side of one round.
//!
//! Calls come in one order: [`advertise`](Client::advertise), [`deal`](Client::deal), [`mask`](Client::mask),
//! [`consent`](Client::consent), [`reveal`](Client::reveal); each takes the server's message and returns the answer.
//! A message that is refused changes nothing. Secrets live in memory only, so a party that restarts has dropped out.

use std::collections::{BTreeMap, BTreeSet};

use serde_bytes::{ByteArray, Bytes};

use super::error::{Result, SecAggError};
use super::keys::{Entropy, IdentityKey, RoundKey, Secret, Use, commitment, derive};
use super::mask::{self, Sign};
use super::messages::{
    Advertise, Bundle, Consent, Deal, KeyList, Masked, Reveal, Sealed, Share, Survivors, Unmask, View,
    parties_view,
};
use super::plan::{PartyId, Session, rising};
use super::roster::{Roster, enough, pair_sign};
use super::rounds::RoundLog;
use super::shamir::{Held, Sharing, seal, unseal};
use super::wire::{self, Kind};

/// One party in one round.
pub struct Client {
    session: Session,
    me: PartyId,
    identity: IdentityKey,
    entropy: Entropy,
    stage: Stage,
}

enum Stage {
    Joined,
    Advertised(Keys),
    Dealt(Dealt),
    Masked(Rest),
}

struct Keys {
    seal: RoundKey,
    mask: RoundKey,
    mask_secret: Secret,
}

/// After dealing the round keys are needed no more.
struct Dealt {
    view: View,
    self_seed: Secret,
    peers: BTreeMap<PartyId, Peer>,
    own: Held,
}

struct Peer {
    pair_seed: Secret,
    opens: Secret,
}

/// After masking nothing of one's own secrets is needed but a share.
struct Rest {
    view: View,
    held: BTreeMap<PartyId, Held>,
    /// The one list ever agreed to, and its view.
    survivors: Option<(Vec<PartyId>, View)>,
}

impl Client {
    /// Joins a round that was never joined before.
    pub fn join(
        identity: IdentityKey,
        me: PartyId,
        session: Session,
        rounds: &mut dyn RoundLog,
    ) -> Result<Self> {
        Self::join_with(identity, me, session, rounds, Entropy::system()?)
    }

    pub(crate) fn join_with(
        identity: IdentityKey,
        me: PartyId,
        session: Session,
        rounds: &mut dyn RoundLog,
        entropy: Entropy,
    ) -> Result<Self> {
        if *session.identity(me)? != identity.public() {
            return Err(SecAggError::WrongIdentity(format!("party {me}")));
        }
        rounds.claim(session.plan().round)?;
        Ok(Self { session, me, identity, entropy, stage: Stage::Joined })
    }

    /// The round.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// This party.
    pub fn me(&self) -> PartyId {
        self.me
    }

    /// Makes the keys of this round.
    pub fn advertise(&mut self) -> Result<Vec<u8>> {
        let Stage::Joined = self.stage else { return Err(SecAggError::OutOfOrder(Kind::Advertise)) };
        let seal = RoundKey::new(&self.entropy.secret()?);
        let mask_secret = self.entropy.secret()?;
        let mask = RoundKey::new(&mask_secret);
        let advert = Advertise { seal: seal.public(), mask: mask.public() };
        let message = self.seal(Kind::Advertise, &advert)?;
        self.stage = Stage::Advertised(Keys { seal, mask, mask_secret });
        Ok(message)
    }

    /// Takes everybody's keys, and deals shares of this party's two secrets.
    pub fn deal(&mut self, key_list: &[u8]) -> Result<Vec<u8>> {
        let Stage::Advertised(keys) = &self.stage else { return Err(SecAggError::OutOfOrder(Kind::KeyList)) };
        let session = &self.session;
        let opened = wire::open(session, Kind::KeyList, key_list)?;
        let roster = Roster::read(session, &opened.decode::<KeyList<'_>>()?.adverts)?;
        enough(session, Kind::KeyList, roster.keys.len())?;
        let mine = Advertise { seal: keys.seal.public(), mask: keys.mask.public() };
        if roster.keys.get(&self.me) != Some(&mine) {
            return Err(SecAggError::Parties { kind: Kind::KeyList, why: "our own keys are not in it" });
        }

        let seed = self.entropy.secret()?;
        let threshold = session.plan().threshold;
        let seeds = Sharing::new(&seed, threshold, &mut self.entropy)?;
        let mask_keys = Sharing::new(&keys.mask_secret, threshold, &mut self.entropy)?;
        let held = |party| {
            let point = session.point(party)?;
            Ok::<_, SecAggError>(Held { seed: seeds.at(point), mask_key: mask_keys.at(point) })
        };

        let me = (self.me, session.identity(self.me)?);
        let mut peers = BTreeMap::new();
        let mut shares = Vec::with_capacity(roster.keys.len());
        for (&party, advert) in roster.keys.iter().filter(|(party, _)| **party != self.me) {
            let peer = (party, session.identity(party)?);
            let shared = keys.seal.agree(&advert.seal, party)?;
            let seals = derive(Use::Seal, &roster.view, me, peer, &shared)?;
            let opens = derive(Use::Seal, &roster.view, peer, me, &shared)?;
            let bytes = ByteArray::new(seal(&held(party)?, &seals, &roster.view, self.me, party)?);
            shares.push(Sealed { party, bytes });
            let pair_seed = roster.pair_seed(session, &keys.mask, self.me, party)?;
            peers.insert(party, Peer { pair_seed, opens });
        }
        let commitment = commitment(&roster.view, self.me, &seed);
        let message = self.seal(Kind::Deal, &Deal { view: roster.view, commitment, shares })?;
        let self_seed = roster.self_seed(session, self.me, &seed)?;
        let own = held(self.me)?;
        self.stage = Stage::Dealt(Dealt { view: roster.view, self_seed, peers, own });
        Ok(message)
    }

    /// Takes the shares dealt to this party, and masks its vector. Coordinates are taken modulo the ring.
    pub fn mask(&mut self, bundle: &[u8], vector: &[u64]) -> Result<Vec<u8>> {
        let Stage::Dealt(dealt) = &self.stage else { return Err(SecAggError::OutOfOrder(Kind::Bundle)) };
        let plan = self.session.plan();
        if vector.len() != plan.len {
            return Err(SecAggError::WrongLength { got: vector.len(), want: plan.len });
        }
        let refused = |why| Err(SecAggError::Parties { kind: Kind::Bundle, why });
        let bundle: Bundle = wire::open(&self.session, Kind::Bundle, bundle)?.decode()?;
        if bundle.to != self.me {
            return refused("it is meant for another party");
        }
        self.same_view(&bundle.view, &dealt.view)?;
        if !bundle.shares.is_sorted_by(|a, b| a.party < b.party) {
            return refused("the dealers are not in rising order, each once");
        }
        enough(&self.session, Kind::Bundle, bundle.shares.len() + 1)?;

        let mut held = BTreeMap::from([(self.me, dealt.own.clone())]);
        let mut masks = vec![(&dealt.self_seed, Sign::Plus)];
        for share in &bundle.shares {
            let from = share.party;
            let peer = dealt.peers.get(&from).ok_or(SecAggError::UnknownParty(from))?;
            held.insert(from, unseal(&share.bytes, &peer.opens, &dealt.view, from, self.me)?);
            masks.push((&peer.pair_seed, pair_sign(self.me, from)));
        }
        let view = parties_view(Kind::Bundle, &dealt.view, held.keys());
        let mut vector = vector.to_vec();
        mask::apply(&mut vector, plan.ring, masks)?;
        let vector = mask::to_bytes(&vector, plan.ring);
        let message = self.seal(Kind::Masked, &Masked { view, vector: Bytes::new(&vector) })?;
        self.stage = Stage::Masked(Rest { view, held, survivors: None });
        Ok(message)
    }

    /// Signs the list of survivors: the first one that is sound, and never another in this round. The same list
    /// gets the same answer again.
    pub fn consent(&mut self, survivors: &[u8]) -> Result<Vec<u8>> {
        let Stage::Masked(rest) = &self.stage else { return Err(SecAggError::OutOfOrder(Kind::Survivors)) };
        let list: Survivors = wire::open(&self.session, Kind::Survivors, survivors)?.decode()?;
        self.same_view(&list.view, &rest.view)?;
        let parties = list.parties;
        let refused = |why| Err(SecAggError::Parties { kind: Kind::Survivors, why });
        if !rising(&parties) {
            return refused("it is not in rising order, each once");
        }
        if parties.iter().any(|party| !rest.held.contains_key(party)) {
            return refused("a party in it dealt no shares");
        }
        if parties.binary_search(&self.me).is_err() {
            return refused("we are not in it");
        }
        enough(&self.session, Kind::Survivors, parties.len())?;
        if rest.survivors.as_ref().is_some_and(|(first, _)| *first != parties) {
            return Err(SecAggError::SecondSurvivors);
        }
        let view = parties_view(Kind::Survivors, &rest.view, parties.iter());
        let message = self.seal(Kind::Consent, &Consent { view })?;
        if let Stage::Masked(rest) = &mut self.stage {
            rest.survivors = Some((parties, view));
        }
        Ok(message)
    }

    /// Reveals shares once a threshold of survivors has signed the very list that this party signed: of the
    /// survivors' seeds, and of the others' mask keys. Which, follows from that list; it cannot be asked for.
    pub fn reveal(&mut self, unmask: &[u8]) -> Result<Vec<u8>> {
        let out_of_order = SecAggError::OutOfOrder(Kind::Unmask);
        let Stage::Masked(Rest { held, survivors: Some((survivors, view)), .. }) = &self.stage else {
            return Err(out_of_order);
        };
        let unmask = wire::open(&self.session, Kind::Unmask, unmask)?;
        let mut consenting = BTreeSet::new();
        for message in unmask.decode::<Unmask<'_>>()?.consents {
            let opened = wire::open(&self.session, Kind::Consent, message)?;
            let refused = |why| Err(SecAggError::Parties { kind: Kind::Unmask, why });
            if survivors.binary_search(&opened.sender).is_err() {
                return refused("a party that is no survivor signed");
            }
            if opened.decode::<Consent>()?.view != *view {
                return Err(SecAggError::View(format!("party {}", opened.sender)));
            }
            if !consenting.insert(opened.sender) {
                return refused("a party signed twice");
            }
        }
        enough(&self.session, Kind::Unmask, consenting.len())?;

        let (mut seeds, mut keys) = (Vec::new(), Vec::new());
        for (&of, held) in held {
            match survivors.binary_search(&of) {
                Ok(_) => seeds.push(Share { of, share: held.seed.clone() }),
                Err(_) => keys.push(Share { of, share: held.mask_key.clone() }),
            }
        }
        self.seal(Kind::Reveal, &Reveal { view: *view, seeds, keys })
    }

    fn seal<T: serde::Serialize>(&self, kind: Kind, body: &T) -> Result<Vec<u8>> {
        wire::seal(&self.session, kind, self.me, &self.identity, body)
    }

    fn same_view(&self, theirs: &View, ours: &View) -> Result<()> {
        if theirs == ours { Ok(()) } else { Err(SecAggError::View("the server".to_owned())) }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match &self.stage {
            Stage::Joined => "joined",
            Stage::Advertised(_) => "advertised",
            Stage::Dealt(_) => "dealt",
            Stage::Masked(_) => "masked",
        };
        f.debug_struct("Client").field("me", &self.me).field("stage", &stage).finish_non_exhaustive()
    }
}
