//! Elements of a domain's XML, with the names and units that libvirt gives them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use roxmltree::Node;

use crate::resources::CpuSet;
use crate::{Error, Result};

/// An element whose children are settings: `cputune`, `memtune`.
#[derive(Clone, Copy)]
pub(super) struct Section<'d> {
    node: Node<'d, 'd>,
    name: &'static str,
}

impl<'d> Section<'d> {
    /// The one that the domain has, if it does.
    pub(super) fn of(domain: Node<'d, 'd>, name: &'static str) -> Result<Option<Self>> {
        let mut found = elements(domain, name);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::invalid(name, name, "is given twice")),
            (node, _) => Ok(node.map(|node| Self { node, name })),
        }
    }

    /// `memtune.hard_limit`.
    pub(super) fn setting(self, child: &str) -> String {
        format!("{}.{child}", self.name)
    }

    /// All children of this name.
    pub(super) fn all(self, child: &'static str) -> impl Iterator<Item = Node<'d, 'd>> {
        elements(self.node, child)
    }

    /// The one child of this name.
    pub(super) fn one(self, child: &'static str) -> Result<Option<Node<'d, 'd>>> {
        let mut found = self.all(child);
        match (found.next(), found.next()) {
            (Some(_), Some(again)) => Err(Error::invalid(self.setting(child), text(again), "is given twice")),
            (node, _) => Ok(node),
        }
    }

    /// The names of children that are none of these.
    pub(super) fn others(self, known: &[&str]) -> BTreeSet<&'d str> {
        let names = self.node.children().filter(Node::is_element).map(|child| child.tag_name().name());
        names.filter(|name| !known.contains(name)).collect()
    }

    /// A whole number; 0 is as good as absent, as libvirt has it.
    pub(super) fn number(self, child: &'static str, allowed: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(node) = self.one(child)? else { return Ok(None) };
        number(&self.setting(child), &text(node), allowed)
    }

    /// A size in bytes, of KiB unless it has a unit; 0 is as good as absent.
    pub(super) fn size(self, child: &'static str) -> Result<Option<u64>> {
        let Some(node) = self.one(child)? else { return Ok(None) };
        let text = text(node);
        let refused = |why: &'static str| Error::invalid(self.setting(child), &text, why);
        let number = whole(&text).ok_or_else(|| refused("takes a whole number"))?;
        let unit = match node.attribute("unit") {
            None => 1 << 10,
            Some(unit) => unit_of(unit)
                .ok_or_else(|| Error::invalid(format!("{}.unit", self.setting(child)), unit, UNITS))?,
        };
        let bytes = number.checked_mul(unit).ok_or_else(|| refused("more bytes than 64 bits can count"))?;
        Ok(Some(bytes).filter(|bytes| *bytes != 0))
    }
}

fn elements<'d>(node: Node<'d, 'd>, name: &'static str) -> impl Iterator<Item = Node<'d, 'd>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The first child element of this name.
pub(super) fn child<'d>(node: Node<'d, 'd>, name: &'static str) -> Option<Node<'d, 'd>> {
    elements(node, name).next()
}

/// The whole text of an element, as XPath's `string()` has it: comments and processing instructions inside do not end it.
pub(super) fn text(node: Node<'_, '_>) -> String {
    let pieces = node.descendants().filter(Node::is_text).filter_map(|piece| piece.text());
    pieces.collect::<String>().trim().to_owned()
}

/// Digits alone: `u64::from_str` would take a sign too.
pub(super) fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A whole number in a range; 0 is as good as absent.
pub(super) fn number(setting: &str, text: &str, allowed: RangeInclusive<u64>) -> Result<Option<u64>> {
    match whole(text) {
        Some(0) => Ok(None),
        Some(number) if allowed.contains(&number) => Ok(Some(number)),
        _ => {
            let why = format!("takes {} to {}", allowed.start(), allowed.end());
            Err(Error::invalid(setting.to_owned(), text, why))
        }
    }
}

const UNITS: &str =
    "takes b, bytes, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB, or K, M, G, T (powers of 1024)";

/// Bytes in a unit, in either case.
fn unit_of(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "b" | "byte" | "bytes") {
        return Some(1);
    }
    let (prefix, base) = match unit.strip_suffix("ib").or_else(|| (unit.len() == 1).then_some(&*unit)) {
        Some(prefix) => (prefix, 1024_u64),
        None => (unit.strip_suffix('b')?, 1000),
    };
    let power = ["k", "m", "g", "t", "p", "e"].iter().position(|known| *known == prefix)?;
    base.checked_pow(u32::try_from(power).ok()?.checked_add(1)?)
}

/// A list such as `1-4,^3,6`, in which `^` takes a number out again.
pub(super) fn set(setting: &str, list: &str) -> Result<CpuSet> {
    let refused = |why: &'static str| Error::invalid(setting.to_owned(), list, why);
    CpuSet::check_length(list).map_err(|error| error.with_setting(setting.to_owned()))?;
    let mut set = CpuSet::new();
    for part in list.split(',').map(str::trim) {
        let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if let Some(number) = part.strip_prefix('^') {
            let number = whole(number).filter(|_| !number.is_empty());
            let number = number.ok_or_else(|| refused("^ takes one number out, as in 1-4,^3"))?;
            let one = u32::try_from(number).ok().and_then(|number| CpuSet::from_numbers([number]).ok());
            set = one.map_or_else(|| set.clone(), |one| set.difference(&one));
        } else {
            if !is_plain(part) || part.is_empty() {
                return Err(refused("takes numbers and ranges, such as 1-4,^3,6"));
            }
            let more: CpuSet = part
                .parse()
                .map_err(|error: Error| error.with_setting(setting.to_owned()).with_value(list))?;
            set = set.union(&more);
        }
    }
    if set.is_empty() { Err(refused("nothing is left of it")) } else { Ok(set) }
}
