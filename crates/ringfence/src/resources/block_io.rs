//! OCI `LinuxBlockIO`: weights and throttles of block devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::oci::{self, Item};
use super::{Limit, update};
use crate::devices::DeviceNumber;

/// OCI `LinuxBlockIO`. The devices are whole disks: the kernel throttles and weighs no partition by itself.
///
/// In OCI's JSON the maps are lists of objects; of two for the same device the later stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Relative weight, 10 to 1000: `blkio.bfq.weight` or `blkio.weight` (v1); `io.bfq.weight`, or else converted to
    /// `io.weight` (v2). OCI: 0 is absent.
    #[serde(with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Weight of the cgroup's own tasks beside its children, 10 to 1000: `blkio.leaf_weight`, before Linux 5.0 and on v1
    /// only. OCI: 0 is absent.
    #[serde(with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u64>,
    /// Weights for single devices.
    #[serde(
        deserialize_with = "oci::read_list::<WeightDevice, _>",
        serialize_with = "oci::write_list::<WeightDevice, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub weight_device: BTreeMap<DeviceNumber, DeviceWeight>,
    /// Most bytes read per second: `blkio.throttle.read_bps_device` (v1), `rbps` of `io.max` (v2). OCI: 0 is
    /// [`Limit::Max`], as in the kernel's v1 file.
    #[serde(
        deserialize_with = "oci::read_list::<ThrottleDevice, _>",
        serialize_with = "oci::write_list::<ThrottleDevice, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub throttle_read_bps_device: BTreeMap<DeviceNumber, Limit>,
    /// Most bytes written per second: `blkio.throttle.write_bps_device` (v1), `wbps` of `io.max` (v2).
    #[serde(
        deserialize_with = "oci::read_list::<ThrottleDevice, _>",
        serialize_with = "oci::write_list::<ThrottleDevice, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub throttle_write_bps_device: BTreeMap<DeviceNumber, Limit>,
    /// Most reads per second, of 32 bits: `blkio.throttle.read_iops_device` (v1), `riops` of `io.max` (v2).
    #[serde(
        rename = "throttleReadIOPSDevice",
        deserialize_with = "oci::read_list::<ThrottleDevice, _>",
        serialize_with = "oci::write_list::<ThrottleDevice, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub throttle_read_iops_device: BTreeMap<DeviceNumber, Limit>,
    /// Most writes per second, of 32 bits: `blkio.throttle.write_iops_device` (v1), `wiops` of `io.max` (v2).
    #[serde(
        rename = "throttleWriteIOPSDevice",
        deserialize_with = "oci::read_list::<ThrottleDevice, _>",
        serialize_with = "oci::write_list::<ThrottleDevice, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub throttle_write_iops_device: BTreeMap<DeviceNumber, Limit>,
}

/// The weights of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceWeight {
    /// As [`BlockIo::weight`]: `blkio.bfq.weight_device`, `blkio.weight_device` (v1), a line of `io.bfq.weight` or
    /// `io.weight` (v2).
    pub weight: Option<u64>,
    /// As [`BlockIo::leaf_weight`]: `blkio.leaf_weight_device`.
    pub leaf_weight: Option<u64>,
}

/// One of the four throttles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Throttles<'a> {
    /// OCI's name.
    pub(crate) setting: &'static str,
    /// Its file on v1.
    pub(crate) v1_file: &'static str,
    /// Its name in `io.max` of v2.
    pub(crate) v2_name: &'static str,
    pub(crate) rates: &'a BTreeMap<DeviceNumber, Limit>,
}

impl Throttles<'_> {
    /// Requests, of which the kernel counts 32 bits; else bytes.
    pub(crate) fn counts_requests(&self) -> bool {
        self.v2_name.ends_with("iops")
    }
}

impl BlockIo {
    /// The throttles, in the order of `io.max`.
    pub(crate) fn throttles(&self) -> [Throttles<'_>; 4] {
        [
            Throttles {
                setting: "blockIO.throttleReadBpsDevice",
                v1_file: "blkio.throttle.read_bps_device",
                v2_name: "rbps",
                rates: &self.throttle_read_bps_device,
            },
            Throttles {
                setting: "blockIO.throttleWriteBpsDevice",
                v1_file: "blkio.throttle.write_bps_device",
                v2_name: "wbps",
                rates: &self.throttle_write_bps_device,
            },
            Throttles {
                setting: "blockIO.throttleReadIOPSDevice",
                v1_file: "blkio.throttle.read_iops_device",
                v2_name: "riops",
                rates: &self.throttle_read_iops_device,
            },
            Throttles {
                setting: "blockIO.throttleWriteIOPSDevice",
                v1_file: "blkio.throttle.write_iops_device",
                v2_name: "wiops",
                rates: &self.throttle_write_iops_device,
            },
        ]
    }

    pub(super) fn merge(&mut self, change: &Self) {
        let Self {
            weight,
            leaf_weight,
            weight_device,
            throttle_read_bps_device,
            throttle_write_bps_device,
            throttle_read_iops_device,
            throttle_write_iops_device,
        } = change;
        update(&mut self.weight, weight);
        update(&mut self.leaf_weight, leaf_weight);
        for (device, DeviceWeight { weight, leaf_weight }) in weight_device {
            let own = self.weight_device.entry(*device).or_default();
            update(&mut own.weight, weight);
            update(&mut own.leaf_weight, leaf_weight);
        }
        self.throttle_read_bps_device.extend(throttle_read_bps_device);
        self.throttle_write_bps_device.extend(throttle_write_bps_device);
        self.throttle_read_iops_device.extend(throttle_read_iops_device);
        self.throttle_write_iops_device.extend(throttle_write_iops_device);
    }
}

/// OCI `LinuxWeightDevice`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WeightDevice {
    major: u32,
    minor: u32,
    #[serde(default, with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    weight: Option<u64>,
    #[serde(default, with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    leaf_weight: Option<u64>,
}

impl Item for WeightDevice {
    type Key = DeviceNumber;
    type Value = DeviceWeight;

    fn into_entry(self) -> (DeviceNumber, DeviceWeight) {
        let Self { major, minor, weight, leaf_weight } = self;
        (DeviceNumber { major, minor }, DeviceWeight { weight, leaf_weight })
    }

    fn from_entry(&DeviceNumber { major, minor }: &DeviceNumber, value: &DeviceWeight) -> Self {
        Self { major, minor, weight: value.weight, leaf_weight: value.leaf_weight }
    }
}

/// OCI `LinuxThrottleDevice`.
#[derive(Serialize, Deserialize)]
struct ThrottleDevice {
    major: u32,
    minor: u32,
    rate: u64,
}

impl Item for ThrottleDevice {
    type Key = DeviceNumber;
    type Value = Limit;

    fn into_entry(self) -> (DeviceNumber, Limit) {
        let Self { major, minor, rate } = self;
        (DeviceNumber { major, minor }, if rate == 0 { Limit::Max } else { Limit::Value(rate) })
    }

    fn from_entry(&DeviceNumber { major, minor }: &DeviceNumber, rate: &Limit) -> Self {
        let rate = match rate {
            Limit::Value(rate) => *rate,
            Limit::Max => 0,
        };
        Self { major, minor, rate }
    }
}
