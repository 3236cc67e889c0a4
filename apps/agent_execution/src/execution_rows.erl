%% @doc Rows of live tasks as maps, for views.
-module(execution_rows).

-include("execution_row.hrl").

-export([views/0]).
-export([view/1]).

%% @doc Every live task, oldest first.
-spec views() -> [map()].
views() ->
    [map(Row) || Row <- lists:keysort(#row.create_ms, ets:tab2list(engine_tables:tasks()))].

%% @doc One live task.
-spec view(TaskId :: binary()) -> map() | none.
view(TaskId) ->
    case ets:lookup(engine_tables:tasks(), TaskId) of
        [Row] -> map(Row);
        [] -> none
    end.

-spec map(#row{}) -> map().
map(#row{} = R) ->
    #{task_id => R#row.task_id, state => R#row.state, tenant => R#row.tenant, agent_id => R#row.agent_id,
      agent_type => R#row.agent_type, executor => R#row.executor, worker => R#row.worker, host_pid => R#row.host_pid,
      attempt => R#row.attempt, fence => R#row.fence, since_ms => R#row.since_ms, create_ms => R#row.create_ms,
      waiting => R#row.waiting, slot => R#row.slot, coordinator => R#row.pid}.
