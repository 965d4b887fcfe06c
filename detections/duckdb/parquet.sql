-- Each event once; made from detections/sigma by `make detections`. Change the path.
CREATE OR REPLACE VIEW events AS
SELECT * FROM read_parquet('ext/**/*.parquet', union_by_name = true, hive_partitioning = true)
QUALIFY row_number() OVER (PARTITION BY metadata.uid) = 1;
