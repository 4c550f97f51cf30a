-- What script/bench --replace needs besides setup.sql. Variable: keys.

\o /dev/null
SELECT feishu.pause_server('feishu');

CREATE SCHEMA bench;

SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
  '{"_id": 1111, "email": "apaas@bytedance.com"}', '{"variable_rgrtgqworiginal": {"_id": 0}}',
  run_at => now() + interval '30 s', replace_key => 'key ' || n))
FROM generate_series(1, :keys) AS n;

-- the same rows in a table without the queue: same columns, same indexes
CREATE TABLE bench.plain (LIKE feishu_internal.outbox INCLUDING ALL);
INSERT INTO bench.plain SELECT * FROM feishu_internal.outbox;
VACUUM ANALYZE bench.plain, feishu_internal.outbox;

ALTER DATABASE postgres SET bench.keys = :'keys';

-- what a replace changes
CREATE PROCEDURE bench.update_each(rounds integer) LANGUAGE plpgsql AS $$
BEGIN
  FOR round IN 1 .. rounds LOOP
    FOR n IN 1 .. current_setting('bench.keys')::integer LOOP
      UPDATE bench.plain SET params = jsonb_build_object('variable_rgrtgqworiginal', jsonb_build_object('_id', round)),
        run_at = now() + interval '30 s', next_at = now() + interval '30 s', expires_at = now() + interval '1 day',
        idempotent_key = gen_random_uuid()
      WHERE id = n;
    END LOOP;
    COMMIT;
  END LOOP;
END $$;

CREATE PROCEDURE bench.replace_each(rounds integer) LANGUAGE plpgsql AS $$
BEGIN
  FOR round IN 1 .. rounds LOOP
    FOR n IN 1 .. current_setting('bench.keys')::integer LOOP
      PERFORM feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
        '{"_id": 1111, "email": "apaas@bytedance.com"}',
        jsonb_build_object('variable_rgrtgqworiginal', jsonb_build_object('_id', round)),
        run_at => now() + interval '30 s', replace_key => 'key ' || n);
    END LOOP;
    COMMIT;
  END LOOP;
END $$;

CREATE PROCEDURE bench.update_all(rounds integer) LANGUAGE plpgsql AS $$
BEGIN
  FOR round IN 1 .. rounds LOOP
    UPDATE bench.plain SET params = jsonb_build_object('variable_rgrtgqworiginal', jsonb_build_object('_id', round)),
      run_at = now() + interval '30 s', next_at = now() + interval '30 s', expires_at = now() + interval '1 day',
      idempotent_key = gen_random_uuid();
    COMMIT;
  END LOOP;
END $$;

CREATE PROCEDURE bench.replace_all(rounds integer) LANGUAGE plpgsql AS $$
BEGIN
  FOR round IN 1 .. rounds LOOP
    PERFORM feishu.enqueue_flow('package_7344545d87__c', 'deleteObject_99c656599f',
      '{"_id": 1111, "email": "apaas@bytedance.com"}',
      jsonb_build_object('variable_rgrtgqworiginal', jsonb_build_object('_id', round)),
      run_at => now() + interval '30 s', replace_key => 'key ' || n)
    FROM generate_series(1, current_setting('bench.keys')::integer) AS n;
    COMMIT;
  END LOOP;
END $$;
