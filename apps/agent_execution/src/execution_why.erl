%% @doc The sentence behind `agent_execution:why/1': pure, from the task as the store has it and its live row.
-module(execution_why).

-export([sentence/2]).

%% @doc Why a task is in its state, at a time in ms.
-spec sentence(Task :: map(), NowMs :: integer()) -> binary().
sentence(#{live := Live} = Task, Now) ->
    iolist_to_binary([state(maps:get(state, Task), Live, Task, Now), history(maps:get(attempt_list, Task, [])), "."]).

-spec state(atom(), map() | none, map(), integer()) -> iodata().
state(queued, #{executor := Executor, since_ms := Since}, _, Now) ->
    ["QUEUED since ", age(Now, Since), ": every slot for ", Executor, " is taken, or its tenant's quota is used up"];
state(queued, none, Task, Now) ->
    ["QUEUED since ", age(Now, maps:get(create_ms, Task, Now)), ": not taken up yet"];
state(waiting, _, Task, _) ->
    case maps:get(waiting_for, Task, <<>>) of
        <<"RETRY">> -> ["WAITING for its next attempt", because(Task), "; no worker held"];
        <<"TIMER">> -> "WAITING for the time it was given (not_before); no worker held";
        Other -> ["WAITING for ", Other, asked(maps:get(inputs, Task, [])), "; no worker held"]
    end;
state(running, #{state := cancelling} = Live, _, Now) ->
    ["RUNNING, being cancelled: ", place(Live), " has its grace; since ", age(Now, maps:get(since_ms, Live))];
state(running, #{waiting := <<"the store">>}, _, _) ->
    "RUNNING: its work is over, the store does not take the end at the moment";
state(running, #{waiting := Waiting} = Live, _, Now) when Waiting =/= <<>> ->
    ["RUNNING attempt ", number(Live), " since ", age(Now, maps:get(since_ms, Live)), ": waits for ", Waiting];
state(running, #{} = Live, _, Now) ->
    ["RUNNING attempt ", number(Live), " since ", age(Now, maps:get(since_ms, Live)), " on ", place(Live)];
state(running, none, _, _) ->
    "RUNNING, without a coordinator: the recovery closes the attempt within seconds";
state(succeeded, _, Task, _) ->
    ["SUCCEEDED after ", duration(Task), " on ", maps:get(executor, Task, <<"?">>)];
state(State, _, Task, _) ->
    [string:uppercase(atom_to_list(State)), " after ", duration(Task), because(Task)].

-spec asked([{binary(), binary()}]) -> iodata().
asked([]) -> "";
asked(Inputs) -> [" (", lists:join(", ", [Id || {Id, _Kind} <- Inputs]), "): singularity signal answers"].

-spec because(map()) -> iodata().
because(#{reason := Reason, message := Message}) when Reason =/= <<>> -> [": ", Reason, " (", Message, ")"];
because(#{attempt_list := [_ | _] = Attempts}) ->
    case maps:get(cause, lists:last(Attempts), <<>>) of <<>> -> []; Cause -> [" after ", Cause] end;
because(_) -> [].

-spec place(map()) -> iodata().
place(#{worker := <<>>, executor := <<"native">>}) -> "a native agent";
place(#{worker := <<>>, executor := Executor}) -> Executor;
place(#{worker := Worker, host_pid := Pid}) -> [Worker, " (os pid ", integer_to_list(Pid), ")"].

-spec number(map()) -> iodata().
number(#{attempt := N}) -> integer_to_list(N).

%% Attempts before the last one, shortest form.
-spec history([map()]) -> iodata().
history(Attempts) when length(Attempts) > 1 ->
    Ended = [A || A <- lists:droplast(Attempts)],
    ["; ", lists:join(", ", [["attempt ", integer_to_list(maps:get(number, A)), " ended ", maps:get(outcome, A),
                              case maps:get(cause, A, <<>>) of <<>> -> []; C -> [" by ", C] end] || A <- lists:sublist(Ended, 5)])];
history(_) ->
    [].

-spec duration(map()) -> iodata().
duration(#{create_ms := From, end_ms := To}) when To > 0 -> age(To, From);
duration(_) -> "?".

-spec age(integer(), integer()) -> iodata().
age(Now, Since) ->
    case max(0, Now - Since) of
        Ms when Ms < 10000 -> io_lib:format("~.1f s", [Ms / 1000]);
        Ms -> io_lib:format("~2..0b:~2..0b:~2..0b", [Ms div 3600000, Ms div 60000 rem 60, Ms div 1000 rem 60])
    end.
