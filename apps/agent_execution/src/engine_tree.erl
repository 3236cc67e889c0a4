%% @doc The live supervision tree of the node's own applications, for people.
-module(engine_tree).

-export([tree/0]).
-export([format/1]).

-type tree() :: {Name :: binary(), pid() | undefined, Note :: binary(), [tree()]}.

%% Children of one supervisor that are shown; of more, the number.
-define(MAX_CHILDREN, 12).
-define(TOPS, [agent_native_sup, agent_store_sup, agent_providers_sup, agent_engine_sup, agent_gateway_sup]).

%% @doc Every top supervisor that runs.
-spec tree() -> [tree()].
tree() ->
    Notes = notes(),
    [node(atom_to_binary(Top), whereis(Top), supervisor, Notes) || Top <- ?TOPS, whereis(Top) =/= undefined].

-spec node(binary(), pid() | undefined | restarting, worker | supervisor, map()) -> tree().
node(Name, Pid, supervisor, Notes) when is_pid(Pid) ->
    %% A supervisor that ends meanwhile has no children.
    Children = try supervisor:which_children(Pid) catch exit:_ -> [] end,
    Shown = lists:sublist(lists:reverse(Children), ?MAX_CHILDREN),
    More = case length(Children) - length(Shown) of
               0 -> [];
               N -> [{<<"... ", (integer_to_binary(N))/binary, " more">>, undefined, <<>>, []}]
           end,
    {Name, Pid, note(Pid, Notes), [node(child(Id, C), C, Type, Notes) || {Id, C, Type, _} <- Shown] ++ More};
node(Name, Pid, _, Notes) when is_pid(Pid) ->
    {Name, Pid, note(Pid, Notes), []};
node(Name, _, _, _) ->
    {Name, undefined, <<>>, []}.

-spec child(term(), pid() | term()) -> binary().
child(Id, Pid) when is_pid(Pid) ->
    case process_info(Pid, registered_name) of
        {registered_name, Name} -> atom_to_binary(Name);
        _ when is_atom(Id), Id =/= undefined -> atom_to_binary(Id);
        _ -> initial(Pid)
    end;
child(Id, _) ->
    iolist_to_binary(io_lib:format("~0p", [Id])).

-spec initial(pid()) -> binary().
initial(Pid) ->
    case proc_lib:translate_initial_call(Pid) of
        {Module, _, _} -> atom_to_binary(Module)
    end.

%% OS processes by the Erlang process that has them, and tasks by their coordinator.
-spec notes() -> #{pid() => binary()}.
notes() ->
    Ports = maps:from_list([{Owner, <<"os pid ", (integer_to_binary(OsPid))/binary>>}
                            || Port <- erlang:ports(), {os_pid, OsPid} <- [erlang:port_info(Port, os_pid)], is_integer(OsPid),
                               {connected, Owner} <- [erlang:port_info(Port, connected)]]),
    Tasks = maps:from_list([{P, <<"task ", (agent_id:short(Id))/binary, " ", (atom_to_binary(S))/binary, " on ", E/binary>>}
                            || #{coordinator := P, task_id := Id, state := S, executor := E} <- execution_rows:views(), is_pid(P)]),
    maps:merge(Ports, Tasks).

-spec note(pid(), #{pid() => binary()}) -> binary().
note(Pid, Notes) ->
    maps:get(Pid, Notes, <<>>).

%% @doc The tree as lines.
-spec format([tree()]) -> iodata().
format(Trees) ->
    [format(T, "", "") || T <- Trees].

-spec format(tree(), string(), string()) -> iodata().
format({Name, Pid, Note, Children}, First, Rest) ->
    Shown = case Pid of undefined -> ""; _ -> [" ", pid_to_list(Pid)] end,
    Tail = case Note of <<>> -> ""; _ -> ["  ", Note] end,
    [First, Name, Shown, Tail, "\n" | branches(Children, Rest)].

-spec branches([tree()], string()) -> [iodata()].
branches([], _) -> [];
branches([Last], Rest) -> [format(Last, Rest ++ "`- ", Rest ++ "   ")];
branches([Child | More], Rest) -> [format(Child, Rest ++ "|- ", Rest ++ "|  ") | branches(More, Rest)].
