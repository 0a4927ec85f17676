//! RDMA resources: `rdma.current` and `rdma.max`, the same on both versions.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::parse;
use crate::host::Controller::Rdma;
use crate::resources::Limit;

/// Resources of one RDMA device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RdmaStats {
    /// Handles in use: `hca_handle` of `rdma.current`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handles: Option<u64>,
    /// Their limit: `hca_handle` of `rdma.max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handles_limit: Option<Limit>,
    /// Objects in use: `hca_object` of `rdma.current`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Their limit: `hca_object` of `rdma.max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_limit: Option<Limit>,
}

pub(super) const FILES: &[File] = &[
    File::v2(Rdma, "rdma.current", |stats, contents| current(&mut stats.rdma, contents)),
    File::v2(Rdma, "rdma.max", |stats, contents| limits(&mut stats.rdma, contents)),
    File::v1(Rdma, "rdma.current", |stats, contents| current(&mut stats.rdma, contents)),
    File::v1(Rdma, "rdma.max", |stats, contents| limits(&mut stats.rdma, contents)),
];

type Devices = super::Table<String, RdmaStats>;

fn current(devices: &mut Devices, contents: &[u8]) {
    for (device, name, text) in resources(contents) {
        match name {
            "hca_handle" => devices.update(device, |row| row.handles = parse::number(text)),
            "hca_object" => devices.update(device, |row| row.objects = parse::number(text)),
            _ => {}
        }
    }
}

fn limits(devices: &mut Devices, contents: &[u8]) {
    for (device, name, text) in resources(contents) {
        match name {
            "hca_handle" => devices.update(device, |row| row.handles_limit = parse::number_or_max(text)),
            "hca_object" => devices.update(device, |row| row.objects_limit = parse::number_or_max(text)),
            _ => {}
        }
    }
}

/// Lines of `DEVICE hca_handle=N hca_object=N`, word by word.
fn resources(contents: &[u8]) -> impl Iterator<Item = (&str, &str, &str)> {
    parse::lines(contents)
        .filter_map(|line| line.split_once(' '))
        .flat_map(|(device, rest)| parse::assignments(rest).map(move |(name, text)| (device, name, text)))
}
