//! Which vCPU is pinned to which CPU. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::Topology;
use crate::resources::CpuSet;

/// How vCPUs are pinned, one to each CPU; neighbours are hyperthreads of one core, then cores of one memory node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pin {
    /// While the vCPUs may use exactly as many CPUs as they are, and no other sandbox holds one of these exclusively.
    Matching,
    /// To CPUs to which no vCPU of another sandbox is pinned: of the memory node that the sandbox allocates from, or the one
    /// that is filled best, and whole cores first, so that no core is shared while there are others.
    Exclusive,
}

impl Pin {
    /// `matching` or `exclusive`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Matching => "matching",
            Self::Exclusive => "exclusive",
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = [Self::Matching, Self::Exclusive].into_iter().find(|pin| pin.as_str() == text);
        found.ok_or_else(|| Error::invalid("pin", text, "matching or exclusive"))
    }
}

/// The CPUs to which vCPUs of other sandboxes are pinned, by sandbox.
#[derive(Debug, Clone, Default)]
pub struct TakenCpus(Vec<Holder>);

#[derive(Debug, Clone)]
struct Holder {
    name: String,
    pin: Pin,
    cpus: CpuSet,
}

impl TakenCpus {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// And these, by a sandbox of this name, which is for messages.
    pub fn add(&mut self, name: impl Into<String>, pin: Pin, cpus: CpuSet) {
        if !cpus.is_empty() {
            self.0.push(Holder { name: name.into(), pin, cpus });
        }
    }

    /// Those who keep one that is to be pinned so from their CPUs.
    fn against(&self, pin: Pin) -> impl Iterator<Item = &Holder> {
        self.0.iter().filter(move |holder| pin == Pin::Exclusive || holder.pin == Pin::Exclusive)
    }

    fn all_against(&self, pin: Pin) -> CpuSet {
        self.against(pin).fold(CpuSet::new(), |all, holder| all.union(&holder.cpus))
    }

    /// `vm1 has 0-1, vm2 has 3`, of these CPUs.
    fn tell(&self, pin: Pin, of: &CpuSet) -> String {
        let holders = self.against(pin).map(|holder| (&holder.name, holder.cpus.intersection(of)));
        let told =
            holders.filter(|(_, cpus)| !cpus.is_empty()).map(|(name, cpus)| format!("{name} has {cpus}"));
        told.collect::<Vec<_>>().join(", ")
    }
}

/// What a choice is made from.
pub(super) struct Choice<'a> {
    pub(super) pin: Pin,
    /// The CPUs that the vCPUs may use.
    pub(super) allowed: &'a CpuSet,
    /// The memory nodes that the sandbox may allocate from.
    pub(super) mems: &'a CpuSet,
    pub(super) topology: &'a Topology,
    pub(super) taken: &'a TakenCpus,
    /// In order.
    pub(super) vcpus: &'a [u32],
    /// Where they are now: what may stay stays, where the choice is free.
    pub(super) before: &'a BTreeMap<u32, u32>,
}

impl Choice<'_> {
    /// vCPU → CPU for all of them, or why it cannot be.
    pub(super) fn make(&self) -> Result<BTreeMap<u32, u32>, String> {
        let taken = self.taken.all_against(self.pin);
        let free = self.allowed.difference(&taken);
        let (allowed, count) = (self.allowed, self.vcpus.len());
        if self.pin == Pin::Exclusive {
            return self.exclusively(&free).ok_or_else(|| {
                let held = self.taken.tell(self.pin, allowed);
                let held = if held.is_empty() { String::new() } else { format!("; {held}") };
                let free = free.len();
                format!("more free CPUs are needed: vCPUs {count}, free CPUs {free} of {allowed}{held}")
            });
        }
        if count != allowed.len() {
            let have = allowed.len();
            return Err(format!("as many CPUs as vCPUs are needed: vCPUs {count}, CPUs {have} ({allowed})"));
        }
        if free != *allowed {
            return Err(format!("others hold CPUs exclusively: {}", self.taken.tell(self.pin, allowed)));
        }
        let in_order = self.by_node(allowed).into_iter().flat_map(|(_, cpus)| self.by_core(&cpus));
        let in_order = in_order.flat_map(|core| core.iter().collect::<Vec<_>>());
        Ok(self.vcpus.iter().copied().zip(in_order).collect())
    }

    fn exclusively(&self, free: &CpuSet) -> Option<BTreeMap<u32, u32>> {
        let stays = |(vcpu, cpu): &(&u32, &u32)| self.vcpus.contains(vcpu) && free.contains(**cpu);
        let mut chosen: BTreeMap<u32, u32> =
            self.before.iter().filter(stays).map(|(vcpu, cpu)| (*vcpu, *cpu)).collect();
        let ours = set(chosen.values().copied());
        let free = free.difference(&ours);
        let missing: Vec<u32> =
            self.vcpus.iter().copied().filter(|vcpu| !chosen.contains_key(vcpu)).collect();
        let mut nodes = self.by_node(&free);
        nodes.sort_by_cached_key(|(node, cpus)| {
            let cpus_of = |node| self.topology.nodes.get(&node);
            let is_ours = node.and_then(cpus_of).is_some_and(|all| !all.intersection(&ours).is_empty());
            let has_memory = node.is_some_and(|node| self.mems.contains(node));
            // The least that fits, else the most.
            let room = match cpus.len().checked_sub(missing.len()) {
                Some(left) => (0, left),
                None => (1, missing.len().saturating_sub(cpus.len())),
            };
            (!is_ours, !has_memory, room, *node)
        });
        let at_hand = free.union(&ours);
        let in_order = nodes.into_iter().flat_map(|(_, cpus)| {
            let mut cores = self.by_core(&cpus);
            cores.sort_by_cached_key(|core| {
                let whole = self.core_of(core);
                let is_ours = !whole.intersection(&ours).is_empty();
                // The other hyperthreads of one that is not whole are somebody else's.
                (!is_ours, !whole.is_subset(&at_hand), core.iter().next())
            });
            cores
        });
        let mut in_order = in_order.flat_map(|core| core.iter().collect::<Vec<_>>());
        for vcpu in missing {
            chosen.insert(vcpu, in_order.next()?);
        }
        Some(chosen)
    }

    /// The CPUs of each node that has any, and those of none.
    fn by_node(&self, cpus: &CpuSet) -> Vec<(Option<u32>, CpuSet)> {
        let mut left = cpus.clone();
        let mut nodes: Vec<_> = Vec::new();
        for (node, all) in &self.topology.nodes {
            nodes.push((Some(*node), left.intersection(all)));
            left = left.difference(all);
        }
        nodes.push((None, left));
        nodes.retain(|(_, cpus)| !cpus.is_empty());
        nodes
    }

    /// The CPUs of each core, in the order of the first of each.
    fn by_core(&self, cpus: &CpuSet) -> Vec<CpuSet> {
        let mut left = cpus.clone();
        let mut cores = Vec::new();
        for cpu in cpus.iter() {
            let core = self.core_of(&set([cpu])).intersection(&left);
            left = left.difference(&core);
            cores.push(core);
        }
        cores.retain(|core| !core.is_empty());
        cores
    }

    /// All CPUs of the core that has these.
    fn core_of(&self, cpus: &CpuSet) -> CpuSet {
        let known = self.topology.cores.iter().find(|core| !core.intersection(cpus).is_empty());
        known.unwrap_or(cpus).clone()
    }
}

/// Of numbers that come from a set.
fn set(cpus: impl IntoIterator<Item = u32>) -> CpuSet {
    CpuSet::from_numbers(cpus).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cpus(list: &str) -> CpuSet {
        list.parse().unwrap()
    }

    /// Two nodes of four CPUs, two hyperthreads to a core: 0 and 4 are one core, as firmware likes to number them.
    fn two_nodes() -> Topology {
        let nodes = [(0, "0-1,4-5"), (1, "2-3,6-7")].map(|(node, list)| (node, cpus(list)));
        Topology { nodes: nodes.into(), cores: ["0,4", "1,5", "2,6", "3,7"].map(cpus).to_vec() }
    }

    fn taken(holders: &[(&str, Pin, &str)]) -> TakenCpus {
        let mut taken = TakenCpus::new();
        holders.iter().for_each(|(name, pin, list)| taken.add(*name, *pin, cpus(list)));
        taken
    }

    /// On two nodes: the CPU of each of `count` vCPUs.
    fn choose(
        pin: Pin,
        allowed: &str,
        mems: &str,
        taken: &TakenCpus,
        count: u32,
    ) -> Result<Vec<u32>, String> {
        let vcpus: Vec<_> = (0..count).collect();
        let (allowed, mems, topology, before) = (&cpus(allowed), &cpus(mems), &two_nodes(), &BTreeMap::new());
        let made = Choice { pin, allowed, mems, topology, taken, vcpus: &vcpus, before }.make()?;
        assert!(made.keys().copied().eq(0..count));
        Ok(made.into_values().collect())
    }

    #[test]
    fn vcpus_are_pinned_where_the_counts_match_neighbours_to_the_hyperthreads_of_a_core() {
        let choose = |allowed, count| choose(Pin::Matching, allowed, "0-1", &TakenCpus::new(), count);
        for (allowed, expected) in [
            ("0-7", vec![0, 4, 1, 5, 2, 6, 3, 7]),
            ("0-3", vec![0, 1, 2, 3]),
            ("1-2,5", vec![1, 5, 2]),
            ("7", vec![7]),
            // That nobody has told of.
            ("0,4,8-9", vec![0, 4, 8, 9]),
        ] {
            let count = expected.len() as u32;
            assert_eq!(choose(allowed, count), Ok(expected), "{allowed}");
            for other in [count - 1, count + 1] {
                let why = choose(allowed, other).unwrap_err();
                let both = format!("vCPUs {other}, CPUs {count} ({allowed})");
                assert!(why.ends_with(&both), "{why}");
            }
        }
    }

    #[test]
    fn matching_cpus_that_another_sandbox_holds_exclusively_are_left_to_it() {
        let matching = |holders| choose(Pin::Matching, "0-1", "0-1", &taken(holders), 2);
        assert_eq!(matching(&[("vm1", Pin::Matching, "0-1"), ("vm2", Pin::Exclusive, "2")]), Ok(vec![0, 1]));
        let why = matching(&[("vm1", Pin::Exclusive, "1-2")]).unwrap_err();
        assert_eq!(why, "others hold CPUs exclusively: vm1 has 1");
    }

    #[test]
    fn exclusive_cpus_are_of_one_node_and_whole_cores_as_far_as_there_are_such() {
        let exclusive = Pin::Exclusive;
        for (allowed, mems, holders, expected) in [
            ("0-7", "0-1", vec![], vec![0, 4]),
            ("0-7", "0-1", vec![], vec![0, 4, 1]),
            ("0-7", "0-1", vec![], vec![0, 4, 1, 5, 2]),
            // The node that the memory is of.
            ("0-7", "1", vec![], vec![2, 6]),
            ("0-7", "1", vec![], vec![2, 6, 3, 7, 0]),
            // The node that is filled best.
            ("0-7", "0-1", vec![("a", exclusive, "2,6")], vec![3, 7]),
            ("0-7", "0-1", vec![("a", exclusive, "2,6")], vec![0, 4, 1]),
            // No core is shared while there are whole ones.
            ("0-7", "0", vec![("a", exclusive, "0")], vec![1, 5]),
            ("0-7", "0", vec![("a", exclusive, "0")], vec![1, 5, 4]),
            ("0-4", "0", vec![], vec![0, 4]),
            ("1-3,5", "0", vec![], vec![1, 5]),
            // None of the nodes has room for all: most in one.
            ("0-7", "0-1", vec![("a", exclusive, "0"), ("b", Pin::Matching, "2,6")], vec![1, 5, 4, 3]),
            ("6", "0", vec![], vec![6]),
        ] {
            let found = choose(exclusive, allowed, mems, &taken(&holders), expected.len() as u32);
            assert_eq!(found, Ok(expected), "{allowed} {mems} {holders:?}");
        }
    }

    #[test]
    fn too_few_are_counted_and_their_holders_named() {
        let holders =
            [("vm1", Pin::Exclusive, "0-1"), ("vm2", Pin::Matching, "3,7"), ("vm3", Pin::Exclusive, "6")];
        let why = choose(Pin::Exclusive, "0-3", "0-1", &taken(&holders), 2).unwrap_err();
        assert_eq!(why, "more free CPUs are needed: vCPUs 2, free CPUs 1 of 0-3; vm1 has 0-1, vm2 has 3");
        let why = choose(Pin::Exclusive, "0-3", "0-1", &TakenCpus::new(), 5).unwrap_err();
        assert_eq!(why, "more free CPUs are needed: vCPUs 5, free CPUs 4 of 0-3");
    }

    #[test]
    fn who_is_pinned_exclusively_stays_when_others_come_and_goes_where_it_may_not_be() {
        let again = |allowed: &str, holders: &[_], vcpus: &[u32], before: &[(u32, u32)]| {
            let (allowed, mems, topology) = (&cpus(allowed), &cpus("0-1"), &two_nodes());
            let (taken, before, pin) = (&taken(holders), &before.iter().copied().collect(), Pin::Exclusive);
            Choice { pin, allowed, mems, topology, taken, vcpus, before }
                .make()
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>()
        };
        // One more: the other hyperthread of the core that it has half of.
        assert_eq!(again("0-7", &[], &[0, 1], &[(0, 6)]), [(0, 6), (1, 2)]);
        assert_eq!(again("0-7", &[("a", Pin::Exclusive, "2")], &[0, 1], &[(0, 6)]), [(0, 6), (1, 3)]);
        // One less, and one whose CPU is gone, or somebody else's.
        assert_eq!(again("0-7", &[], &[1], &[(0, 0), (1, 4)]), [(1, 4)]);
        assert_eq!(again("4-7", &[], &[0, 1], &[(0, 0), (1, 4)]), [(0, 5), (1, 4)]);
        assert_eq!(again("0-7", &[("a", Pin::Matching, "0")], &[0, 1], &[(0, 0), (1, 4)]), [(0, 1), (1, 4)]);
    }

    proptest! {
        #[test]
        fn no_two_vcpus_have_one_cpu_and_nobody_has_what_is_taken(
            allowed in proptest::collection::btree_set(0u32..12, 0..12),
            others in proptest::collection::btree_set(0u32..12, 0..6),
            vcpus in proptest::collection::btree_set(0u32..9, 0..8),
            before in proptest::collection::btree_map(0u32..9, 0u32..12, 0..4),
            node in 0u32..3,
            exclusive: bool,
        ) {
            let pin = if exclusive { Pin::Exclusive } else { Pin::Matching };
            let distinct = before.values().collect::<std::collections::BTreeSet<_>>().len() == before.len();
            prop_assume!(distinct);
            let (allowed, others) = (set(allowed), set(others));
            let mut taken = TakenCpus::new();
            taken.add("a", Pin::Exclusive, others.clone());
            let (vcpus, mems, topology) = (vcpus.into_iter().collect::<Vec<_>>(), set([node]), two_nodes());
            let choice =
                Choice { pin, allowed: &allowed, mems: &mems, topology: &topology, taken: &taken, vcpus: &vcpus, before: &before };
            let free = allowed.difference(&others);
            match choice.make() {
                Ok(made) => {
                    prop_assert!(made.keys().eq(&vcpus));
                    let chosen = set(made.values().copied());
                    prop_assert_eq!(chosen.len(), made.len());
                    prop_assert!(chosen.is_subset(&free));
                }
                Err(_) if exclusive => prop_assert!(free.len() < vcpus.len()),
                Err(_) => prop_assert!(allowed.len() != vcpus.len() || free != allowed),
            }
        }
    }
}
