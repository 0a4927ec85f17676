//! From the `oci-spec` crate's type.

use oci_spec::runtime::LinuxResources;

use super::Resources;
use crate::{Error, ErrorKind, Report, Result};

impl Resources {
    /// Takes over what the `oci-spec` crate's type holds. The report has a line for every field that nobody reads.
    ///
    /// # Errors
    /// A field with a value that OCI does not allow.
    pub fn from_oci(resources: &LinuxResources) -> Result<(Self, Report)> {
        // By way of text, so that an error knows its field; where in that text, means nothing to the caller.
        let text = serde_json::to_string(resources).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "the resources cannot be written as JSON").with_source(error)
        })?;
        Self::from_oci_json(&text).map_err(|error| match error.message().split_once(" at line ") {
            Some((message, _)) => {
                let message = message.to_owned();
                error.with_message(message)
            }
            None => error,
        })
    }
}

/// [`Resources::from_oci`], for callers who have no use for the report.
impl TryFrom<&LinuxResources> for Resources {
    type Error = Error;

    fn try_from(resources: &LinuxResources) -> Result<Self> {
        Self::from_oci(resources).map(|(resources, _)| resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limit;

    #[test]
    fn a_full_oci_spec_value_goes_through_and_what_is_not_read_is_reported() {
        use oci_spec::runtime::{
            LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType,
            LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxNetworkBuilder, LinuxPidsBuilder,
            LinuxRdmaBuilder, LinuxResourcesBuilder,
        };
        #[allow(deprecated)]
        let memory = LinuxMemoryBuilder::default()
            .limit(1 << 30)
            .reservation(512 << 20)
            .swap(2i64 << 30)
            .kernel(-1)
            .kernel_tcp(4096)
            .swappiness(0u64)
            .disable_oom_killer(false)
            .use_hierarchy(true)
            .check_before_update(true)
            .build()
            .unwrap();
        let cpu = LinuxCpuBuilder::default()
            .shares(1024u64)
            .quota(50_000)
            .period(100_000u64)
            .burst(0u64)
            .idle(0)
            .realtime_runtime(950_000)
            .realtime_period(1_000_000u64)
            .cpus("0-3,8")
            .mems("0")
            .build()
            .unwrap();
        let device = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(1)
            .minor(3)
            .access("rwm")
            .build()
            .unwrap();
        let resources = LinuxResourcesBuilder::default()
            .memory(memory)
            .cpu(cpu)
            .pids(LinuxPidsBuilder::default().limit(100).build().unwrap())
            .devices(vec![device])
            .unified([
                ("memory.high".to_owned(), "max".to_owned()),
                ("io.max".to_owned(), "8:0 rbps=1".to_owned()),
            ])
            .block_io(LinuxBlockIoBuilder::default().weight(500u16).build().unwrap())
            .hugepage_limits(vec![
                LinuxHugepageLimitBuilder::default().page_size("2MB").limit(1).build().unwrap(),
            ])
            .network(LinuxNetworkBuilder::default().class_id(7u32).build().unwrap())
            .rdma([("mlx5".to_owned(), LinuxRdmaBuilder::default().hca_handles(3u32).build().unwrap())])
            .build()
            .unwrap();

        let (taken, report) = Resources::from_oci(&resources).unwrap();
        assert_eq!(taken, Resources::try_from(&resources).unwrap());
        assert_eq!(taken.devices.len(), 1);
        let expected = Resources::new()
            .memory_limit(1 << 30)
            .memory_reservation(512 << 20)
            .memory_swap(2 << 30)
            .memory_kernel(Limit::Max)
            .memory_kernel_tcp(4096)
            .memory_swappiness(0)
            .disable_oom_killer(false)
            .memory_use_hierarchy(true)
            .memory_check_before_update(true)
            .cpu_shares(1024)
            .cpu_quota(50_000)
            .cpu_period(100_000)
            .cpu_burst(0)
            .cpu_idle(false)
            .cpu_realtime_runtime(950_000)
            .cpu_realtime_period(1_000_000)
            .cpuset_cpus("0-3,8".parse().unwrap())
            .cpuset_mems("0".parse().unwrap())
            .pids_limit(100)
            .unified("memory.high", "max")
            .unified("io.max", "8:0 rbps=1");
        assert_eq!(Resources { devices: Vec::new(), ..taken }, expected);
        let reported: Vec<_> = report
            .lines()
            .iter()
            .map(|line| (line.setting.as_ref(), line.value.as_str()))
            .filter(|(setting, _)| !setting.starts_with("devices"))
            .collect();
        assert_eq!(
            reported,
            [
                ("blockIO.weight", "500"),
                ("hugepageLimits", r#"[{"limit":1,"pageSize":"2MB"}]"#),
                ("network.classID", "7"),
                ("rdma.mlx5.hcaHandles", "3"),
            ]
        );
    }

    #[test]
    fn an_unsound_oci_spec_value_is_refused_by_the_name_of_its_field() {
        use oci_spec::runtime::LinuxPidsBuilder;
        let mut unsound = LinuxResources::default();
        unsound.set_pids(Some(LinuxPidsBuilder::default().limit(-5).build().unwrap()));
        let error = Resources::try_from(&unsound).unwrap_err();
        assert_eq!((error.setting(), error.value()), (Some("pids.limit"), Some("-5")));
        assert!(error.message().ends_with("a whole number of tasks"), "{error}");
    }
}
