CREATE TABLE items (id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, amount INTEGER);
CREATE TABLE kinds (id INTEGER PRIMARY KEY, label TEXT);
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99)
    INSERT INTO kinds SELECT i, 'kind ' || i FROM n;
BEGIN;
WITH RECURSIVE n(i, x) AS (
    SELECT 1, 12345 UNION ALL SELECT i + 1, (x * 1103515245 + 12345) & 2147483647 FROM n WHERE i < @ROWS@
)
    INSERT INTO items SELECT i, x / 65536 % 100, 'item ' || (x / 256 % 100000), x / 65536 FROM n;
COMMIT;
CREATE INDEX by_name ON items (name);
SELECT label, count(*), sum(amount), max(name)
    FROM items JOIN kinds ON kinds.id = items.kind GROUP BY label ORDER BY label;
SELECT count(*) FROM items a JOIN items b ON a.name = b.name AND a.id < b.id;
SELECT name, amount FROM items WHERE name LIKE '%77%' ORDER BY amount DESC, id LIMIT 50;
UPDATE items SET amount = amount + length(name) WHERE kind % 3 = 0;
DELETE FROM items WHERE kind % 7 = 1;
SELECT count(*), sum(amount), min(name) FROM items;
