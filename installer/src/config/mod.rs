//! links.toml and runtime.toml: parsed and checked, purely.
