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
    use crate::resources::document::tests::WHOLE;

    #[test]
    fn a_full_oci_spec_value_means_what_its_json_means() {
        // There, the limit of huge pages is signed.
        let text = WHOLE.replace(r#""limit": 18446744073709551615"#, r#""limit": -1"#);
        let (taken, report) = Resources::from_oci(&serde_json::from_str(&text).unwrap()).unwrap();
        assert!(report.is_empty(), "{report}");
        let (mut expected, _) = Resources::from_oci_json(WHOLE).unwrap();
        assert!(expected.cpu.weight.take().is_some(), "OCI has none");
        assert_eq!(taken, expected);
        assert_eq!(
            taken,
            Resources::try_from(&serde_json::from_str::<LinuxResources>(&text).unwrap()).unwrap()
        );
    }

    #[test]
    fn device_rules_are_taken_over() {
        use oci_spec::runtime::{LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxResourcesBuilder};
        let device =
            LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(1).minor(3);
        let device = device.access("rwm").build().unwrap();
        let resources = LinuxResourcesBuilder::default().devices(vec![device]).build().unwrap();
        let taken = Resources::try_from(&resources).unwrap();
        assert_eq!(taken.devices.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c 1:3 rwm"]);
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
