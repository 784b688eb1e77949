//! What each token, each address and each API key has in a table that others use, too.
//!
//! A table with a bound of its own is filled by one peer, and everybody else finds it full. So each entry has an owner, and each
//! owner a share: so many by one token, so many from one address ([`AddressGroup::steps`]), so many by one API key.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use jetway_base::address::AddressGroup;
use jetway_token::TokenId;

/// Whose an entry is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The token it was made with, where that counts.
    pub token: Option<TokenId>,
    /// The address it was made from, where that counts.
    pub address: Option<IpAddr>,
    /// The name of the API key it was made with, if it was.
    pub key: Option<String>,
}

/// Who has its share already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// The bearer of this token.
    #[error("token {0}")]
    Token(TokenId),
    /// Whoever is at this address.
    #[error("address {0}")]
    Address(AddressGroup),
    /// Whoever has the API key of this name.
    #[error("API key {0}")]
    Key(String),
}

/// Counts the entries of each owner.
#[derive(Debug)]
pub struct Shares {
    per_token: usize,
    per_address: usize,
    per_key: usize,
    tokens: HashMap<TokenId, usize>,
    addresses: HashMap<AddressGroup, usize>,
    keys: HashMap<String, usize>,
}

impl Owner {
    /// An entry of this token, made from this address.
    #[must_use]
    pub fn new(token: Option<TokenId>, address: Option<IpAddr>) -> Self {
        Self {
            token,
            address,
            key: None,
        }
    }

    /// The same, made with the API key of this name.
    #[must_use]
    pub fn by_key(mut self, name: impl Into<String>) -> Self {
        self.key = Some(name.into());
        self
    }

    /// Whether the entry is of the one that has its share already.
    #[must_use]
    pub fn is(&self, crowded: &Crowded) -> bool {
        match crowded {
            Crowded::Token(token) => self.token.as_ref() == Some(token),
            Crowded::Address(group) => self.address.is_some_and(|address| {
                AddressGroup::steps(address).any(|(step, _)| step == *group)
            }),
            Crowded::Key(name) => self.key.as_ref() == Some(name),
        }
    }
}

impl Shares {
    /// So many entries for one token, and so many for one address.
    #[must_use]
    pub fn new(per_token: usize, per_address: usize) -> Self {
        Self {
            per_token,
            per_address,
            per_key: usize::MAX,
            tokens: HashMap::new(),
            addresses: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// And of a table of so many entries that much for one API key which leaves others, with keys and without, a quarter.
    #[must_use]
    pub fn with_keys(mut self, entries: usize) -> Self {
        self.per_key = entries.saturating_sub(entries / 4);
        self
    }

    /// Whether `owner` may have one more entry.
    ///
    /// # Errors
    /// Its token, its address or its API key has its share.
    pub fn check(&self, owner: &Owner) -> Result<(), Crowded> {
        if let Some(token) = &owner.token
            && count(&self.tokens, token) >= self.per_token
        {
            return Err(Crowded::Token(token.clone()));
        }
        if let Some(address) = owner.address {
            for (group, factor) in AddressGroup::steps(address) {
                if count(&self.addresses, &group) >= self.per_address.saturating_mul(factor) {
                    return Err(Crowded::Address(group));
                }
            }
        }
        if let Some(key) = &owner.key
            && count(&self.keys, key) >= self.per_key
        {
            return Err(Crowded::Key(key.clone()));
        }
        Ok(())
    }

    /// Counts one more entry of `owner`.
    ///
    /// # Errors
    /// As [`check`](Self::check); then nothing was counted.
    pub fn enter(&mut self, owner: &Owner) -> Result<(), Crowded> {
        self.check(owner)?;
        self.count(owner);
        Ok(())
    }

    /// Counts one more entry of `owner`, whatever it has: one that is there already.
    pub fn count(&mut self, owner: &Owner) {
        if let Some(token) = &owner.token {
            *self.tokens.entry(token.clone()).or_default() += 1;
        }
        if let Some(address) = owner.address {
            for (group, _) in AddressGroup::steps(address) {
                *self.addresses.entry(group).or_default() += 1;
            }
        }
        if let Some(key) = &owner.key {
            *self.keys.entry(key.clone()).or_default() += 1;
        }
    }

    /// Counts one entry of `owner` less.
    pub fn leave(&mut self, owner: &Owner) {
        if let Some(token) = &owner.token {
            decrease(&mut self.tokens, token);
        }
        if let Some(address) = owner.address {
            for (group, _) in AddressGroup::steps(address) {
                decrease(&mut self.addresses, &group);
            }
        }
        if let Some(key) = &owner.key {
            decrease(&mut self.keys, key);
        }
    }

    /// Whether nobody has anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.addresses.is_empty() && self.keys.is_empty()
    }
}

fn count<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn decrease<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(token: &str, address: &str) -> Owner {
        Owner::new(Some(TokenId::new(token)), Some(address.parse().unwrap()))
    }

    #[test]
    fn a_token_and_an_address_have_their_share_and_others_theirs() {
        let mut shares = Shares::new(2, 3);
        let mine = owner("mine", "192.0.2.1");
        shares.enter(&mine).unwrap();
        shares.enter(&mine).unwrap();
        let crowded = shares.enter(&mine).unwrap_err();
        assert_eq!(crowded, Crowded::Token(TokenId::new("mine")));
        assert!(mine.is(&crowded));
        shares.enter(&owner("another", "192.0.2.1")).unwrap();
        let crowded = shares.enter(&owner("a third", "192.0.2.1")).unwrap_err();
        assert_eq!(crowded.to_string(), "address 192.0.2.1");
        assert!(mine.is(&crowded));
        shares.enter(&owner("a third", "192.0.2.2")).unwrap();
        for owner in [
            &mine,
            &mine,
            &owner("another", "192.0.2.1"),
            &owner("a third", "192.0.2.2"),
        ] {
            shares.leave(owner);
        }
        assert!(shares.is_empty());
    }

    #[test]
    fn an_api_key_has_three_quarters_of_a_table_and_others_the_rest() {
        let mut shares = Shares::new(usize::MAX, usize::MAX).with_keys(8);
        let portal = Owner::default().by_key("portal");
        for _ in 0..6 {
            shares.enter(&portal).unwrap();
        }
        let crowded = shares.enter(&portal).unwrap_err();
        assert_eq!(crowded.to_string(), "API key portal");
        let other = Owner::default().by_key("other");
        assert!(portal.is(&crowded) && !other.is(&crowded) && !Owner::default().is(&crowded));
        shares.enter(&other).unwrap();
        shares.enter(&Owner::default()).unwrap();
        shares.leave(&portal);
        shares.enter(&portal).unwrap();
        // A table of one entry is of use, too.
        let mut shares = Shares::new(usize::MAX, usize::MAX).with_keys(1);
        shares.enter(&portal).unwrap();
    }

    #[test]
    fn a_home_and_an_organisation_have_their_share_however_many_networks_they_have() {
        let mut shares = Shares::new(usize::MAX, 3);
        let mut of = |text: &str| {
            let owner = Owner::new(None, Some(text.parse().unwrap()));
            shares.enter(&owner).map_err(|crowded| crowded.to_string())
        };
        let mut granted = 0;
        for link in 0..256 {
            granted += usize::from(of(&format!("2001:db8:1:{link:x}::1")).is_ok());
        }
        assert_eq!(granted, 6, "one /56");
        for link in 0..=u16::MAX {
            granted += usize::from(of(&format!("2001:db8:1:{link:x}::1")).is_ok());
        }
        assert_eq!(granted, 12, "one /48");
        assert_eq!(
            of("2001:db8:1:ffff::1"),
            Err("address 2001:db8:1::/48".to_owned())
        );
        assert_eq!(of("2001:db8:2::1"), Ok(()));
    }
}
