%% @doc Tasks that end with their parent: `on_parent_end', whose default is CANCEL.
%%
%% A child that lives here has a row under its parent, from its submit or its start on. What ended while nobody looked (another life of the
%% node) is found when the child is about to start. A parent that had ended before the child was made ends nothing.
-module(execution_family).

-export([joined/1]).
-export([left/1]).
-export([ended/1]).
-export([is_orphan/1]).

%% What a child gets to end by itself, in ms.
-define(GRACE_MS, 5000).

%% @doc A task is there; one without a parent costs nothing.
-spec joined(Header :: map()) -> ok.
joined(#{ends_with := Parent, task_id := Id, tenant := Tenant}) ->
    true = ets:insert(engine_tables:families(), {Parent, Id, Tenant}),
    ok;
joined(_) ->
    ok.

%% @doc A child is no more.
-spec left(Header :: map()) -> ok.
left(#{ends_with := Parent, task_id := Id, tenant := Tenant}) ->
    true = ets:delete_object(engine_tables:families(), {Parent, Id, Tenant}),
    ok;
left(_) ->
    ok.

%% @doc A task has ended: its children are cancelled, by a process of their own.
-spec ended(TaskId :: binary()) -> ok.
ended(TaskId) ->
    case ets:take(engine_tables:families(), TaskId) of
        [] ->
            ok;
        Children ->
            _ = [spawn(fun() -> agent_engine:cancel(Tenant, Child, ?GRACE_MS, <<"its parent task has ended">>) end)
                 || {_, Child, Tenant} <- Children],
            ok
    end.

%% @doc Whether the parent of a task ended while the task waited.
-spec is_orphan(Header :: map()) -> boolean().
is_orphan(#{ends_with := Parent, tenant := Tenant, create_ms := Created}) ->
    case agent_store:read({task, Parent, Tenant}) of
        {ok, #{state := State, end_ms := End}} when State =:= succeeded; State =:= failed; State =:= cancelled; State =:= timed_out ->
            End >= Created;
        %% A parent that was deleted had ended.
        {error, #{reason := task_not_found}} -> true;
        _ -> false
    end;
is_orphan(_) ->
    false.
