//! The interfaces of Spin that components import, generated from `wit/`.

wasmtime::component::bindgen!({
    path: "wit",
    world: "links:host/imports",
    // Plain WIT functions are async here as well: a write must not hold a thread of the executor.
    imports: {
        default: async | trappable,
        // What is traced needs the store, which knows the request that calls.
        "spin:sqlite/sqlite.[static]connection.open": async | store | trappable,
        "spin:sqlite/sqlite.[method]connection.execute": async | store | trappable,
    },
    additional_derives: [PartialEq],
    trappable_error_type: {
        "spin:sqlite/sqlite.error" => spin::sqlite::sqlite::Error,
        "spin:variables/variables.error" => spin::variables::variables::Error,
        "spin:key-value/key-value.error" => spin::key_value::key_value::Error,
    },
    with: {
        "spin:sqlite/sqlite.connection": crate::database::Connection,
        "spin:key-value/key-value.store": crate::key_value::Store,
    },
});

pub use spin::key_value::key_value;
pub use spin::sqlite::sqlite;
pub use spin::variables::variables;
