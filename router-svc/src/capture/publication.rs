//! The publication: that it is there, and has every table of the source under the name that the settings know.

use std::collections::HashSet;

use super::{
    CaptureError,
    config::{Source, Table, identifier, literal},
    slot::text,
    wire::Connection,
};

/// Makes the publication, or adds the tables that it lacks; where that isn't ours to do, says what is missing.
///
/// A partitioned table's changes come by its own name only where the publication says so: else each comes by its
/// partition's, which no setting names.
pub(super) async fn ensure(source: &Source, connection: &mut Connection) -> Result<(), CaptureError> {
    let (name, publication) = (literal(&source.publication), identifier(&source.publication));
    let there = connection.query(&format!("SELECT pubviaroot FROM pg_publication WHERE pubname = {name}")).await?;
    let through_root = there.first().map(|row| text(row, 0) == "t");
    let mut missing = missing_of(source, connection).await?;
    if source.manage && through_root == Some(false) && has_partitioned(connection, &missing).await? {
        let set = format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)");
        connection.query(&set).await?;
        missing = missing_of(source, connection).await?;
    }
    let tables = missing.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ");
    match (there.is_empty(), missing.is_empty()) {
        (false, true) => Ok(()),
        (true, _) if source.manage => {
            let with = "WITH (publish_via_partition_root = true)";
            connection.query(&format!("CREATE PUBLICATION {publication} FOR TABLE {tables} {with}")).await?;
            Ok(())
        }
        (false, _) if source.manage => {
            connection.query(&format!("ALTER PUBLICATION {publication} ADD TABLE {tables}")).await?;
            Ok(())
        }
        (true, _) => {
            Err(CaptureError::Source("the publication doesn't exist: create it, or set manage = true".to_owned()))
        }
        (false, _) => {
            tracing::error!(
                source = source.name,
                tables,
                "the publication lacks tables (a partitioned one needs publish_via_partition_root): their changes don't come"
            );
            Ok(())
        }
    }
}

/// Tables of the source whose changes the publication doesn't have, under their own name or a partitioned one's above.
async fn missing_of<'s>(source: &'s Source, connection: &mut Connection) -> Result<Vec<&'s Table>, CaptureError> {
    let published = connection
        .query(&format!(
            "WITH published AS (SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = {})
             SELECT schemaname, tablename FROM published UNION SELECT nspname, relname FROM published
             CROSS JOIN LATERAL pg_partition_tree(format('%I.%I', schemaname, tablename)::regclass) tree
             JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace",
            literal(&source.publication)
        ))
        .await?;
    let published: HashSet<_> = published.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    let has = |table: &Table| published.contains(&(table.schema.clone(), table.name.clone()));
    let mut missing: Vec<_> = source.owners.keys().filter(|table| !has(table)).collect();
    missing.sort();
    Ok(missing)
}

async fn has_partitioned(connection: &mut Connection, tables: &[&Table]) -> Result<bool, CaptureError> {
    let names = tables.iter().map(|table| format!("to_regclass({})", literal(&table.quoted())));
    let names = names.collect::<Vec<_>>().join(", ");
    let select = format!("SELECT 1 FROM pg_class WHERE relkind = 'p' AND oid IN ({names})");
    Ok(!tables.is_empty() && !connection.query(&select).await?.is_empty())
}
