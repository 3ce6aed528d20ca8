//! Bindings for the Spin interfaces that components import, generated from `wit/`.

wasmtime::component::bindgen!({
    path: "wit",
    world: "links:host/imports",
    // Even plain WIT functions are async here, because a write must not block an executor thread.
    imports: {
        default: async | trappable,
        // Traced functions need the store, which knows the calling request.
        "spin:sqlite/sqlite.[static]connection.open": async | store | trappable,
        "spin:sqlite/sqlite.[method]connection.execute": async | store | trappable,
    },
    additional_derives: [PartialEq],
    trappable_error_type: {
        "spin:sqlite/sqlite.error" => spin::sqlite::sqlite::Error,
        "spin:variables/variables.error" => spin::variables::variables::Error,
        "spin:key-value/key-value.error" => spin::key_value::key_value::Error,
    },
});

pub use spin::key_value::key_value;
pub use spin::sqlite::sqlite;
pub use spin::variables::variables;
