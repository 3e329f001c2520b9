#![allow(clippy::unwrap_used)]

mod corpus;

use super::*;

#[test]
fn every_fault_is_read_back_from_its_name() {
    for fault in Fault::all() {
        assert_eq!(fault.to_string().parse(), Ok(fault));
    }
    let words =
        "malicious equivocate bad-signature corrupt-vote wrong-state silent slow replay delay=200ms drop=30%";
    for word in words.split(' ') {
        assert_eq!(word.parse::<Fault>().unwrap().to_string(), word);
    }
    assert_eq!("delay=2s".parse(), Ok(Fault::Delay(2_000_000)));
    assert_eq!(Fault::Delay(1_500).to_string().parse(), Ok(Fault::Delay(1_500)));
}

#[test]
fn a_wrong_name_is_told_what_there_is() {
    for text in ["", "evil", "delay=", "delay=5", "delay=61s", "drop=101%", "drop=5", "Silent"] {
        let error = text.parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?}")) && error.contains("corrupt-vote"), "{error}");
    }
}
