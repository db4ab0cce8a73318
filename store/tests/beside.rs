//! Files beside the table.

mod common;

#[tokio::test]
async fn files_beside_the_table_are_created_once_replaced_and_listed() {
    let (_folder, dataset) = common::dataset(1, 4).await;
    assert_eq!(dataset.read_beside("plan.json").await.unwrap(), None);
    let created = futures::future::join_all(
        (0..8).map(|writer| dataset.create_beside("plan.json", format!("{writer}"))),
    )
    .await;
    let winners: Vec<_> = (0..8).filter(|&writer| *created[writer].as_ref().unwrap()).collect();
    let content = dataset.read_beside("plan.json").await.unwrap().unwrap();
    assert_eq!(winners, [String::from_utf8_lossy(&content).parse::<usize>().unwrap()]);

    assert_eq!(dataset.list_beside("skipped").await.unwrap(), Vec::<String>::new());
    for (name, content) in [("skipped/b", "1"), ("skipped/a", "2"), ("skipped/b", "3")] {
        dataset.write_beside(name, content).await.unwrap();
    }
    assert_eq!(dataset.list_beside("skipped").await.unwrap(), ["skipped/a", "skipped/b"]);
    assert_eq!(dataset.read_beside("skipped/b").await.unwrap().unwrap(), "3");
    assert_eq!(dataset.refresh().await.unwrap().rows(), 4);
}
