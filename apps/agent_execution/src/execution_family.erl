%% @doc Tasks that end with their parent: `on_parent_end', whose default is CANCEL.
%%
%% A child has a row under its parent as long as both live here. Whoever joins is written down first and looks at the parent then, so an
%% end between the two is seen by one of them; what ended in another life of the node is found when the child is about to start. A parent
%% that had ended before the child was made ends nothing.
-module(execution_family).

-export([joined/1]).
-export([closed/1]).
-export([ended/1]).
-export([cancel/1]).

%% What a child gets to end by itself, in ms.
-define(GRACE_MS, 5000).

%% @doc A task is there; `orphan' if its parent has ended since it was made. One without a parent costs nothing.
-spec joined(Header :: map()) -> ok | orphan.
joined(#{ends_with := Parent, task_id := Id, tenant := Tenant, create_ms := Created}) ->
    Row = {Parent, Id, Tenant},
    true = ets:insert(engine_tables:families(), Row),
    case agent_store:read({task, Parent, Tenant}) of
        {ok, #{state := State, end_ms := End}} when State =:= succeeded; State =:= failed; State =:= cancelled; State =:= timed_out ->
            true = ets:delete_object(engine_tables:families(), Row),
            case End >= Created of true -> orphan; false -> ok end;
        %% A parent that was deleted had ended.
        {error, #{reason := task_not_found}} ->
            true = ets:delete_object(engine_tables:families(), Row),
            orphan;
        _ ->
            ok
    end;
joined(_) ->
    ok.

%% @doc A task's end is recorded: it is nobody's child any more, and its own children are cancelled.
-spec closed(Header :: map()) -> ok.
closed(#{task_id := Id} = Header) ->
    _ = [ets:delete_object(engine_tables:families(), {Parent, Id, Tenant}) || #{ends_with := Parent, tenant := Tenant} <- [Header]],
    ended(Id).

%% @doc A task has ended of which only the id is known: its children are cancelled, each by a process of its own.
-spec ended(TaskId :: binary()) -> ok.
ended(TaskId) ->
    lists:foreach(fun({_, Child, Tenant}) -> cancel(#{task_id => Child, tenant => Tenant}) end,
                  ets:take(engine_tables:families(), TaskId)).

%% @doc Cancels a task whose parent has ended.
-spec cancel(#{task_id := binary(), tenant := binary(), _ => _}) -> ok.
cancel(#{task_id := Id, tenant := Tenant}) ->
    _ = spawn(fun() -> agent_engine:cancel(Tenant, Id, ?GRACE_MS, <<"its parent task has ended">>) end),
    ok.
