//! The raw bindings of both worlds, generated from `wit/rank.wit`. Not part of the SDK's interface.
//!
//! The export macros carry the description of the whole world into the plugin's own crate; what is
//! generated here describes imports only, so that a policy does not drag the evaluator's world in.
#![allow(missing_docs, reason = "generated code; the WIT file has the documentation")]

/// World `reporting-policy`: a rank policy with all optional interfaces.
pub mod policy {
    wit_bindgen::generate!({
        path: "wit",
        world: "reporting-policy",
        pub_export_macro: true,
        export_macro_name: "export_policy_world",
        default_bindings_module: "plastic_plugin::__private::policy",
    });
}

/// World `evaluator`.
pub mod evaluator {
    wit_bindgen::generate!({
        path: "wit",
        world: "evaluator",
        pub_export_macro: true,
        export_macro_name: "export_evaluator_world",
        default_bindings_module: "plastic_plugin::__private::evaluator",
    });
}
