%% A live task, as views and the recovery see it. One row in engine_tables:tasks() for each.
-record(row, {
    task_id :: binary() | '_' | '$1',
    pid :: pid() | undefined | '_' | '$2',
    state = starting :: atom(),
    tenant = <<>> :: binary() | '_' | '$2',
    agent_id = <<>> :: binary() | '_',
    agent_type = <<>> :: binary() | '_',
    executor = <<>> :: binary() | '_',
    worker = <<>> :: binary() | '_',
    host_pid = 0 :: non_neg_integer() | '_',
    attempt = 0 :: non_neg_integer() | '_',
    fence = 0 :: non_neg_integer() | '_',
    since_ms = 0 :: integer() | '_',
    create_ms = 0 :: integer() | '_',
    %% Class of the slot it holds, none if it holds none.
    slot = none :: none | binary() | '_' | '$1',
    %% What it waits for just now: <<>>, or words for people.
    waiting = <<>> :: binary() | '_',
    %% In the run queue: what it needs to be started again; none once a coordinator has it.
    item = none :: none | map() | '_' | '$1'
}).
