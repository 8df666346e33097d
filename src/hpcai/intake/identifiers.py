"""What a DICOM header says of persons: counted, never shown.   data set -> names of kinds

The attributes are those of the Basic Application Level Confidentiality Profile that lead to a person most directly; its table
has some hundreds more. Source: DICOM PS3.15, annex E, table E.1-1. UIDs lead to a person for whoever has the archive.
"""

from __future__ import annotations

from typing import Any

KINDS: dict[str, tuple[str, ...]] = {  # kind: keywords of DICOM PS3.6
    "names": (
        "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName",
        "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "OperatorsName", "RequestingPhysician", "PhysiciansOfRecord",
        "ResponsiblePerson",
    ),
    "patient ids": (
        "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "AccessionNumber", "AdmissionID", "MedicalRecordLocator",
    ),
    "birth dates": ("PatientBirthDate", "PatientBirthTime"),
    "addresses": (
        "PatientAddress", "PatientTelephoneNumbers", "CountryOfResidence", "RegionOfResidence", "ReferringPhysicianAddress",
        "ReferringPhysicianTelephoneNumbers", "InstitutionName", "InstitutionAddress",
    ),
    "dates of study": ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
    "free text": ("PatientComments", "ImageComments", "AdditionalPatientHistory", "StudyComments", "Occupation"),
    "devices": ("DeviceSerialNumber", "StationName"),
}  # fmt: skip
DIRECT = ("names", "birth dates", "addresses", "burned in")


def kinds_of(header: Any) -> set[str]:
    """The kinds of which a data set (with its sequences) has a value.

    Besides: `private tags`, `burned in` where the header says so, `burned in: not said`, `said to be de-identified`.
    """
    found: set[str] = set()
    of = {keyword: kind for kind, keywords in KINDS.items() for keyword in keywords}
    for element in header.iterall():
        if element.tag.is_private:
            found.add("private tags")
        elif element.keyword in of and str(element.value).strip():
            found.add(of[element.keyword])
    burned = str(header.get("BurnedInAnnotation", "")).strip().upper()
    if burned == "YES":
        found.add("burned in")
    elif burned != "NO":
        found.add("burned in: not said")
    if str(header.get("PatientIdentityRemoved", "")).strip().upper() == "YES":
        found.add("said to be de-identified")
    return found
